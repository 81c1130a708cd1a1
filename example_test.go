package shardgram_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres, testserver.NeedRedis) }

var schema = fstest.MapFS{"0001_photo.sql": {Data: []byte("create table photo (id bigint primary key default next_id(), author text not null)")}}

// must ends the program at the first error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

const bob, carol = 11, 12

func Example() {
	ctx := context.Background()
	pg1 := shard.Node{Name: "pg_1", DSN: testserver.PostgresDSN()}
	pg2 := shard.Node{Name: "pg_2", DSN: testserver.PostgresDSN() + "&application_name=pg_2"}
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr()})
	defer rdb.Close()
	var cluster *shard.Cluster
	// A feed that is not in Redis is read from PostgreSQL, here of the one author.
	photosOf := func(ctx context.Context, _, before int64, n int) ([]int64, error) {
		rows, err := cluster.Key("alice").Query(ctx, "select id from photo where id < $1 order by id desc limit $2", before, n)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[int64])
	}

	cluster = must(shard.Open(ctx, shard.Static(64, pg1, pg2), shard.Config{}))
	defer cluster.Close()
	must(cluster.Migrate(ctx, schema, shard.MigrateConfig{})) // 64 schemas with your tables

	alice := cluster.Key("alice") // her shard, for ever the same
	var photo idgen.ID            // from PostgreSQL: sorts by time, carries the shard
	must(0, alice.QueryRow(ctx, "insert into photo (author) values ('alice') returning id").Scan(&photo))

	feeds := must(feedcache.New(rdb, photosOf, feedcache.Config{}))
	must(feeds.Push(ctx, slices.Values([]int64{bob, carol}), int64(photo)))
	page := must(feeds.Page(ctx, bob, 0, 20)) // from PostgreSQL once, then from Redis

	fmt.Println(page.IDs[0] == int64(photo), cluster.ID(photo) == alice)
	// Output: true true
}

// TestREADMEShowsTheExample holds the README to code that runs.
func TestREADMEShowsTheExample(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, body, ok := strings.Cut(string(source), "\treturn pgx.CollectRows(rows, pgx.RowTo[int64])\n\t}\n\n")
	require.True(t, ok)
	body, _, ok = strings.Cut(body, "\t// Output:")
	require.True(t, ok)
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, shown, ok := strings.Cut(string(readme), "```go\n")
	require.True(t, ok, "README.md has no Go code")
	shown, _, _ = strings.Cut(shown, "```")
	require.Equal(t, strings.ReplaceAll("\n"+body, "\n\t", "\n")[1:], shown)
}
