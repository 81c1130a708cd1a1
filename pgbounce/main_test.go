package pgbounce_test

import (
	"testing"

	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) {
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedPgBouncer)
}
