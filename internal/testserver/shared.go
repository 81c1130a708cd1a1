package testserver

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/internal/localserver"
)

// redisDatabases is more than one test binary runs tests at a time.
const redisDatabases = 4096

// The shared servers of this test binary, each started at first use.
var (
	sharedMu   sync.Mutex
	sharedHost *localserver.Host

	sharedPostgres = sync.OnceValues(func() (*localserver.Postgres, error) {
		return onShared(func(ctx context.Context, h *localserver.Host) (*localserver.Postgres, error) {
			return h.Postgres(ctx, "postgres", localserver.PostgresConfig{})
		})
	})
	sharedRedis = sync.OnceValues(func() (*localserver.Redis, error) {
		return onShared(func(ctx context.Context, h *localserver.Host) (*localserver.Redis, error) {
			return h.Redis(ctx, "redis", localserver.RedisConfig{
				Settings: map[string]string{"databases": fmt.Sprint(redisDatabases)},
			})
		})
	})
	sharedMemcached = sync.OnceValues(func() (*localserver.Memcached, error) {
		return onShared(func(ctx context.Context, h *localserver.Host) (*localserver.Memcached, error) {
			return h.Memcached(ctx, "memcached", localserver.MemcachedConfig{})
		})
	})
)

func onShared[S any](start func(context.Context, *localserver.Host) (S, error)) (S, error) {
	h, err := openShared()
	if err != nil {
		return *new(S), err
	}
	return start(context.Background(), h)
}

func openShared() (*localserver.Host, error) {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if sharedHost != nil {
		return sharedHost, nil
	}
	var err error
	sharedHost, err = localserver.Open(localserver.Config{Fast: true})
	return sharedHost, err
}

func closeShared() error {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if sharedHost == nil {
		return nil
	}
	return sharedHost.Close()
}

// mustAddr is for examples, which cannot return an error.
func mustAddr[S any](s S, err error, addr func(S) string) string {
	switch {
	case err == nil:
		return addr(s)
	case missing(err):
		return ""
	default:
		panic(err)
	}
}

// PostgresDSN returns the address of the shared PostgreSQL server's database
// "postgres", for examples. It is empty if PostgreSQL is not installed; Main
// then runs no example.
func PostgresDSN() string {
	s, err := sharedPostgres()
	return mustAddr(s, err, func(s *localserver.Postgres) string { return s.DSN("postgres") })
}

// RedisAddr returns the address of the shared Redis server, for examples,
// which have its database 0 to themselves. It is empty if Redis is not
// installed; Main then runs no example.
func RedisAddr() string {
	s, err := sharedRedis()
	return mustAddr(s, err, (*localserver.Redis).Addr)
}

// MemcachedAddr returns the address of the shared memcached server, for
// examples. It is empty if memcached is not installed; Main then runs no
// example.
func MemcachedAddr() string {
	s, err := sharedMemcached()
	return mustAddr(s, err, (*localserver.Memcached).Addr)
}

// counter numbers the databases and prefixes of this test binary.
var counter = struct {
	sync.Mutex
	n int
}{}

func nextNumber() int {
	counter.Lock()
	defer counter.Unlock()
	counter.n++
	return counter.n
}

// Postgres returns the address of a new, empty database for the test, which
// is dropped at the end with all connections to it.
func Postgres(t testing.TB) string {
	t.Helper()
	need(t, NeedPostgres)
	server, err := sharedPostgres()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test_%d", nextNumber())
	admin := func(sql string) {
		t.Helper()
		ctx := context.Background() // t.Context() has ended when we drop
		c, err := pgx.Connect(ctx, server.DSN("postgres"))
		if err != nil {
			t.Fatalf("testserver: %v\n%s", err, server.Log())
		}
		defer c.Close(ctx)
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatalf("testserver: %s: %v", sql, err)
		}
	}
	admin("create database " + name)
	t.Cleanup(func() { admin("drop database " + name + " with (force)") })
	return server.DSN(name)
}

// freeDatabases are the numbers of Redis databases that no test has now.
// Database 0 belongs to the examples.
var freeDatabases = func() chan int {
	c := make(chan int, redisDatabases)
	for n := 1; n < redisDatabases; n++ {
		c <- n
	}
	return c
}()

// Redis returns a client of an empty Redis database that no other test uses.
// At the end the database is emptied and the client closed. Commands that
// concern the whole server, such as FLUSHALL or CONFIG SET, belong on a
// server from [Host].
func Redis(t testing.TB) *redis.Client {
	t.Helper()
	need(t, NeedRedis)
	server, err := sharedRedis()
	if err != nil {
		t.Fatal(err)
	}
	database := <-freeDatabases
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: database})
	t.Cleanup(func() {
		client.Close() // the test may have closed it already
		last := redis.NewClient(&redis.Options{Addr: server.Addr(), DB: database})
		defer last.Close()
		if err := last.FlushDB(context.Background()).Err(); err != nil {
			t.Errorf("testserver: %v\n%s", err, server.Log())
		}
		freeDatabases <- database
	})
	return client
}

// Memcached returns the address of the shared memcached server. Keys of a
// test begin with its [Prefix]; nothing that concerns the whole server, such
// as flush_all, belongs here.
func Memcached(t testing.TB) string {
	t.Helper()
	need(t, NeedMemcached)
	server, err := sharedMemcached()
	if err != nil {
		t.Fatal(err)
	}
	return server.Addr()
}

// Prefix returns a short prefix for keys that no other test of this binary
// gets, nor the same test when it runs again.
func Prefix(testing.TB) string {
	return fmt.Sprintf("t%d:", nextNumber())
}
