// Package testserver gives tests real PostgreSQL, PgBouncer, Redis and memcached
// servers.
//
// A package calls [Main] from TestMain and names what it needs:
//
//	func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedRedis) }
//
// One server of a kind then serves the whole test binary, started when the
// first test asks for it. Tests share it and run in parallel: [Postgres] gives
// each a database of its own, [Redis] a Redis database, [Prefix] a prefix for
// keys in memcached. A test that stops or pauses servers, or wants a PgBouncer,
// takes its own from [Host].
//
// Where a server is not installed, tests that ask for it are skipped and
// examples are not run; if the environment variable CI is set, the test binary
// fails instead, so that nothing is skipped unseen there.
package testserver

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shardgram/shardgram/internal/localserver"
	"go.uber.org/goleak"
)

// A Need is a kind of server that the tests of a package use.
type Need = localserver.Kind

// The servers that [Main] knows.
const (
	NeedPostgres  Need = localserver.KindPostgres
	NeedPgBouncer Need = localserver.KindPgBouncer // has no shared server: take one from Host
	NeedRedis     Need = localserver.KindRedis
	NeedMemcached Need = localserver.KindMemcached
)

// declared is what Main was told.
var declared []Need

// Main runs the tests of a package and exits. It checks that the servers are
// installed, stops those that were started, and fails if a goroutine is left.
func Main(m *testing.M, needs ...Need) {
	os.Exit(run(m, needs))
}

func run(m *testing.M, needs []Need) int {
	declared = needs
	if err := localserver.Available(needs...); err != nil {
		if os.Getenv("CI") != "" {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		skipExamples()
	}
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	if code != 0 {
		return code // a failed test may well have left goroutines: its failure is the news
	}
	// A pool of go-redis that saw its server away looks for it once a second, and
	// notices only then that it was closed.
	err := goleak.Find()
	for end := time.Now().Add(3 * time.Second); err != nil && time.Now().Before(end); {
		err = goleak.Find()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// skipExamples keeps the examples from running, which have no way to skip.
func skipExamples() {
	flag.Parse()
	skip := "^Example"
	if given := flag.Lookup("test.skip").Value.String(); given != "" {
		skip = given + "|" + skip
	}
	if err := flag.Set("test.skip", skip); err != nil {
		panic("bug: " + err.Error())
	}
}

// Host returns a Host of its own for a test that breaks servers. It is Fast,
// prints the logs of its servers if the test fails, and is closed at the end.
func Host(t testing.TB) *localserver.Host {
	t.Helper()
	need(t, declared...)
	h, err := localserver.Open(localserver.Config{Fast: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range h.Servers() {
				t.Logf("log of %s %s:\n%s", s.Kind(), s.Name(), s.Log())
			}
		}
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// need skips the test if a server is not installed. Main has seen to it that
// this cannot happen where CI is set.
func need(t testing.TB, needs ...Need) {
	t.Helper()
	for _, n := range needs {
		if !slices.Contains(declared, n) {
			t.Fatalf("testserver: TestMain must call testserver.Main with %q", n)
		}
		if err := available(n); err != nil {
			t.Skip(err)
		}
	}
}

// available looks for each kind of server once.
func available(n Need) error {
	value, _ := found.LoadOrStore(n, sync.OnceValue(func() error { return localserver.Available(n) }))
	return value.(func() error)()
}

var found sync.Map // from Need to func() error

// missing reports whether an error means that a server is not installed.
func missing(err error) bool {
	var absent *localserver.MissingError
	var unfit *localserver.VersionError
	return errors.As(err, &absent) || errors.As(err, &unfit)
}
