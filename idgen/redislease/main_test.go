package redislease_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedRedis) }

// durable are the settings of a server that forgets nothing.
func durable() map[string]string {
	return map[string]string{"appendonly": "yes", "appendfsync": "always"}
}

func start(t *testing.T, h *localserver.Host, name string, cfg localserver.RedisConfig) *localserver.Redis {
	t.Helper()
	server, err := h.Redis(t.Context(), name, cfg)
	require.NoError(t, err)
	return server
}

// private starts a durable server for one test, and a client of it.
func private(t *testing.T) (*localserver.Redis, *redis.Client) {
	t.Helper()
	server := start(t, testserver.Host(t), "redis", localserver.RedisConfig{Settings: durable()})
	return server, dial(t, server.Addr())
}

// options are those of a client that gives up soon.
func options(addr string) *redis.Options {
	return &redis.Options{
		Addr: addr, DialTimeout: 500 * time.Millisecond,
		ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second,
		MaxRetries: 1, DialerRetries: 1, ContextTimeoutEnabled: true,
		// After as many failed dials the client would start a goroutine that
		// outlives Close by up to a second.
		PoolSize: 1000, PipelinePoolSize: 1000,
	}
}

func dial(t testing.TB, addr string) *redis.Client {
	t.Helper()
	rdb := redis.NewClient(options(addr))
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	return rdb
}

func open(t testing.TB, rdb redis.UniversalClient, cfg redislease.Config) *redislease.Store {
	t.Helper()
	store, err := redislease.New(rdb, cfg)
	require.NoError(t, err)
	return store
}

func claim(t testing.TB, s *redislease.Store, shard int) idgen.Lease {
	t.Helper()
	l, err := s.Claim(t.Context(), shard, idgen.Default)
	require.NoError(t, err)
	return l
}

// within returns a context that ends after d.
func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// soon waits until f holds.
func soon(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), what)
	}
}

// answers makes a client lose them: the command is sent, or not, and what
// comes back is an error.
type answers struct {
	trips  atomic.Int64
	lose   atomic.Pointer[loss]
	before atomic.Pointer[redis.Client] // sends the first command of a pipeline too
}

type loss struct {
	err  error
	sent bool
}

func (a *answers) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *answers) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return a.pass([]redis.Cmder{cmd}, func() error { return next(ctx, cmd) })
	}
}

func (a *answers) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if before := a.before.Load(); before != nil {
			before.Do(ctx, cmds[0].Args()...)
		}
		return a.pass(cmds, func() error { return next(ctx, cmds) })
	}
}

func (a *answers) pass(cmds []redis.Cmder, next func() error) error {
	a.trips.Add(1)
	l := a.lose.Load()
	if l == nil {
		return next()
	}
	if l.sent {
		_ = next()
	}
	for _, cmd := range cmds {
		cmd.SetErr(l.err)
	}
	return l.err
}
