package testserver_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// Variables that make this test binary misbehave when it runs itself.
const (
	leakVariable      = "TESTSERVER_TEST_LEAK"
	undeclareVariable = "TESTSERVER_TEST_UNDECLARE"
)

func TestMain(m *testing.M) {
	if os.Getenv(leakVariable) != "" {
		go func() { select {} }()
	}
	if os.Getenv(undeclareVariable) != "" {
		testserver.Main(m)
	}
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedRedis, testserver.NeedMemcached)
}

func ExampleRedisAddr() {
	client := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr()})
	defer client.Close()
	fmt.Println(client.Ping(context.Background()).Val())
	// Output: PONG
}

func ExamplePostgresDSN() {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, testserver.PostgresDSN())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close(ctx)
	fmt.Println(conn.Config().Database)
	// Output: postgres
}

func ExampleMemcachedAddr() {
	client := memcache.New(testserver.MemcachedAddr())
	defer client.Close()
	fmt.Println(client.Ping())
	// Output: <nil>
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	ctx := context.Background() // t.Context has ended when the cleanup runs
	var used string
	t.Cleanup(func() { // runs after that of Postgres
		if t.Skipped() {
			return
		}
		conn, err := pgx.Connect(ctx, testserver.PostgresDSN())
		require.NoError(t, err)
		defer conn.Close(ctx)
		var left int
		require.NoError(t, conn.QueryRow(ctx, "select count(*) from pg_database where datname = $1", used).Scan(&left))
		require.Zero(t, left, "the database is dropped at the end of its test")
	})

	dsn := testserver.Postgres(t)
	require.NotEqual(t, dsn, testserver.Postgres(t))
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	// Never closed: dropping the database must cope with it.
	_, err = conn.Exec(ctx, "create table photo (id bigint)")
	require.NoError(t, err)
	used = conn.Config().Database
}

func TestRedis(t *testing.T) {
	t.Parallel()
	used := 0
	t.Cleanup(func() { // runs after that of Redis
		if t.Skipped() {
			return
		}
		client := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), DB: used})
		defer client.Close()
		size, err := client.DBSize(context.Background()).Result()
		require.NoError(t, err)
		require.Zero(t, size, "the database is empty at the end of its test")
	})

	a, b := testserver.Redis(t), testserver.Redis(t)
	require.NoError(t, a.Set(t.Context(), "key", "value", 0).Err())
	require.ErrorIs(t, b.Get(t.Context(), "key").Err(), redis.Nil)
	used = a.Options().DB
	require.NotZero(t, used, "0 is for examples")
	require.NoError(t, a.Close(), "emptying the database must cope with it")
}

func TestMemcached(t *testing.T) {
	t.Parallel()
	client := memcache.New(testserver.Memcached(t))
	defer client.Close()
	key := testserver.Prefix(t) + "key"
	require.NoError(t, client.Set(&memcache.Item{Key: key, Value: []byte("value")}))
	require.NotEqual(t, testserver.Prefix(t), testserver.Prefix(t))
}

func TestHost(t *testing.T) {
	t.Parallel()
	var dir string
	t.Cleanup(func() { // runs after that of Host
		if !t.Skipped() {
			require.NoDirExists(t, dir)
		}
	})
	h := testserver.Host(t)
	require.DirExists(t, h.Dir())
	require.NotEqual(t, h.Dir(), testserver.Host(t).Dir())
	dir = h.Dir()
}

// What Main does where servers are missing or goroutines are left shows only
// from outside.
func TestMainFromOutside(t *testing.T) {
	t.Parallel()
	const nothingInstalled = "PATH=/nonexistent" // but PostgreSQL, which is found without it
	tests := []struct {
		name    string
		run     string
		env     []string
		fails   bool
		says    []string
		saysNot []string
	}{
		{
			name: "SkipsAtHome", run: "^(TestRedis|TestMemcached|TestHost|Example.*)$", env: []string{nothingInstalled, "CI="},
			says: []string{
				"--- SKIP: TestRedis", "redis-server is not installed (on Debian: apt-get install redis-server)",
				"--- SKIP: TestMemcached", "memcached is not installed", "--- SKIP: TestHost",
			},
			saysNot: []string{"--- PASS", "Example"},
		},
		{
			name: "FailsInCI", run: "^TestHost$", env: []string{nothingInstalled, "CI=true"}, fails: true,
			says:    []string{"redis-server is not installed", "memcached is not installed"},
			saysNot: []string{"SKIP", "PASS"},
		},
		{
			name: "Passes", run: "^(TestRedis|ExampleRedisAddr)$",
			says: []string{"--- PASS: TestRedis", "--- PASS: ExampleRedisAddr"},
		},
		{
			name: "FindsALeak", run: "^TestRedis$", env: []string{leakVariable + "=1"}, fails: true,
			says: []string{"--- PASS: TestRedis", "found unexpected goroutines"},
		},
		{
			name: "WantsNeedsDeclared", run: "^TestRedis$", env: []string{undeclareVariable + "=1"}, fails: true,
			says: []string{`TestMain must call testserver.Main with "redis"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.v", "-test.run="+tt.run)
			cmd.Env = append(os.Environ(), tt.env...)
			out, err := cmd.CombinedOutput()
			if tt.fails {
				var exit *exec.ExitError
				require.ErrorAs(t, err, &exit, "%s", out)
				require.Equal(t, 1, exit.ExitCode(), "%s", out)
			} else {
				require.NoError(t, err, "%s", out)
			}
			for _, s := range tt.says {
				require.Contains(t, string(out), s)
			}
			for _, s := range tt.saysNot {
				require.NotContains(t, string(out), s)
			}
			require.NotContains(t, strings.ToLower(string(out)), "panic")
		})
	}
}
