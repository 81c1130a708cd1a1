package redislease_test

import (
	"context"
	"errors"
	"net"
	"sync"
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

// shortWindow makes a generator depend on its store ten times a second.
var shortWindow = idgen.Config{Window: 100 * time.Millisecond}

// drain takes IDs until there is an error that is not Redis's, and returns it.
// The generator has a moment to find out.
func drain(t *testing.T, g *idgen.Generator) error {
	t.Helper()
	ctx := within(t, 20*time.Second)
	for {
		if _, err := g.Next(ctx); err != nil {
			return err
		}
	}
}

// A sequence takes IDs of generators that follow each other.
type sequence struct{ last idgen.ID }

func (s *sequence) next(ctx context.Context, t *testing.T, g *idgen.Generator) error {
	t.Helper()
	id, err := g.Next(ctx)
	if err != nil {
		return err
	}
	require.Greater(t, id, s.last)
	s.last = id
	return nil
}

func TestMarksSurviveAServerThatIsKilled(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	store := open(t, rdb, redislease.Config{})
	g, err := idgen.Open(ctx, store, 3, shortWindow)
	require.NoError(t, err)
	var ids sequence
	l := claim(t, store, 7)
	for mark := idgen.ID(100); mark < 104; mark++ {
		require.NoError(t, l.Extend(ctx, mark))
		require.NoError(t, ids.next(ctx, t, g))
		require.NoError(t, server.Kill())
		require.Error(t, l.Extend(ctx, mark+1))
		soon(t, "the generator has used up its mark", func() bool {
			err := ids.next(ctx, t, g)
			require.NotErrorIs(t, err, idgen.ErrLeaseLost)
			return err != nil
		})
		require.NoError(t, server.Restart(ctx))
		soon(t, "the generator goes on", func() bool { return ids.next(ctx, t, g) == nil })
	}
	require.NoError(t, l.Extend(ctx, 200))
	require.NoError(t, server.Kill())
	require.NoError(t, server.Restart(ctx))
	require.Equal(t, idgen.ID(200), claim(t, store, 7).Mark())
	require.NoError(t, g.Close())

	g, err = idgen.Open(ctx, store, 3, shortWindow)
	require.NoError(t, err)
	require.NoError(t, ids.next(ctx, t, g), "above all before")
	require.NoError(t, g.Close())
}

// While Redis hangs, what was sent waits in its sockets, and is done all at once
// when it wakes up.
func TestAServerThatHangs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	store := open(t, rdb, redislease.Config{})
	g, err := idgen.Open(ctx, store, 3, shortWindow)
	require.NoError(t, err)
	l := claim(t, store, 7)
	require.NoError(t, l.Extend(ctx, 100))
	var ids sequence
	require.NoError(t, ids.next(ctx, t, g))
	// A client that does not look at ctx reports its own timeout only.
	opt := options(server.Addr())
	opt.ContextTimeoutEnabled, opt.ReadTimeout, opt.MaxRetries, opt.PipelinePoolSize = false, 200*time.Millisecond, -1, 0
	stubborn := redis.NewClient(opt)
	defer stubborn.Close()
	deaf := claim(t, open(t, stubborn, redislease.Config{}), 8)

	require.NoError(t, server.Pause())
	var stuck error
	var took time.Duration
	soon(t, "the generator has used up its mark", func() bool {
		begin := time.Now()
		stuck = ids.next(within(t, 200*time.Millisecond), t, g)
		took = time.Since(begin)
		return stuck != nil
	})
	require.ErrorIs(t, stuck, context.DeadlineExceeded)
	require.Less(t, took, time.Second)
	for mark := idgen.ID(101); mark < 105; mark++ {
		require.ErrorIs(t, l.Extend(within(t, 100*time.Millisecond), mark), context.DeadlineExceeded)
	}
	_, err = store.Claim(within(t, 100*time.Millisecond), idgen.AnyShard, idgen.Default)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	require.ErrorIs(t, deaf.Extend(within(t, 50*time.Millisecond), 100), context.DeadlineExceeded)

	require.NoError(t, server.Resume())
	require.NoError(t, l.Extend(ctx, 200))
	require.NoError(t, ids.next(ctx, t, g))
	for mark := idgen.ID(201); mark < 220; mark++ {
		require.NoError(t, l.Extend(ctx, mark), "no write from before comes late")
	}
	require.Equal(t, idgen.ID(219), claim(t, store, 7).Mark())
	require.NoError(t, g.Close())
}

func TestAGeneratorClosesWhileTheServerHangs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, rdb := private(t)
	g, err := idgen.Open(ctx, open(t, rdb, redislease.Config{}), 3, shortWindow)
	require.NoError(t, err)
	require.NoError(t, server.Pause())
	begin := time.Now()
	require.ErrorContains(t, g.Close(), "redislease: release idgen[3]: ")
	require.Less(t, time.Since(begin), 8*time.Second)
	require.NoError(t, server.Resume())
}

func TestScriptsSurviveAFlush(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	for _, replicas := range []int{0, 1} {
		store := open(t, rdb, redislease.Config{Replicas: replicas})
		if replicas > 0 {
			follow(t, rdb)
		}
		l := claim(t, store, 3)
		require.NoError(t, l.Extend(ctx, l.Mark()+1))
		require.NoError(t, rdb.ScriptFlush(ctx).Err())
		require.NoError(t, l.Extend(ctx, l.Mark()+2))
		require.NoError(t, rdb.ScriptFlush(ctx).Err())
		require.NoError(t, l.Release(ctx, l.Mark()+3))
		require.NoError(t, rdb.ScriptFlush(ctx).Err())
		claim(t, store, 3)
	}
}

// follow starts a replica of a private server.
func follow(t *testing.T, rdb *redis.Client) {
	t.Helper()
	replica := start(t, testserver.Host(t), "follower", localserver.RedisConfig{})
	_, port, err := net.SplitHostPort(rdb.Options().Addr)
	require.NoError(t, err)
	require.NoError(t, dial(t, replica.Addr()).ReplicaOf(t.Context(), "127.0.0.1", port).Err())
	soon(t, "the replica follows", func() bool {
		n, err := rdb.Do(t.Context(), "wait", 1, 10).Int()
		return err == nil && n == 1
	})
}

func TestAMarkWaitsForItsReplicas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := testserver.Host(t)
	primary := start(t, h, "primary", localserver.RedisConfig{Settings: durable()})
	rdb := dial(t, primary.Addr())
	var a answers
	rdb.AddHook(&a)
	store := open(t, rdb, redislease.Config{Replicas: 1})
	l := claim(t, store, 3)
	short := func() context.Context { return within(t, 1500*time.Millisecond) }
	require.EqualError(t, l.Extend(short(), 100), "redislease: extend idgen[3]: 0 replicas have the mark: want 1")

	replica := start(t, h, "replica", localserver.RedisConfig{ReplicaOf: primary})
	behind := dial(t, replica.Addr())
	stored := func() string { return behind.HGet(ctx, "{idgen}:lease", "3").Val() }
	soon(t, "the replica is seen", func() bool { return l.Extend(ctx, 101) == nil })
	require.Contains(t, stored(), "101 ", "when Extend returns the replica has it")
	for mark := idgen.ID(102); mark < 150; mark++ {
		require.NoError(t, l.Extend(ctx, mark))
		require.Contains(t, stored(), mark.String()+" ")
	}

	require.NoError(t, replica.Pause())
	a.before.Store(dial(t, primary.Addr()))
	require.ErrorContains(t, l.Extend(short(), 200), "0 replicas have the mark",
		"also if the client has sent it before, over another connection")
	a.before.Store(nil)
	for range 3 {
		require.ErrorContains(t, l.Extend(short(), 200), "0 replicas have the mark", "a repetition is no success either")
	}
	begin := time.Now()
	require.Error(t, l.Extend(ctx, 200))
	require.Less(t, time.Since(begin), 5*time.Second, "without a deadline of ctx too")
	require.NoError(t, replica.Resume())
	soon(t, "the replica answers again", func() bool { return l.Extend(ctx, 201) == nil })
	require.Contains(t, stored(), "201 ")

	two := claim(t, open(t, rdb, redislease.Config{Replicas: 2}), 4)
	require.ErrorContains(t, two.Extend(short(), 1), "1 replicas have the mark: want 2")
	require.NoError(t, two.Release(ctx, 1), "which waits for none")
}

// A failover to a replica that lags takes back the last mark. The holder must
// not go on as if it were stored; with Replicas it was never told so.
func TestAFailoverThatForgetsAMark(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		replicas int
	}{{"Asynchronous", 0}, {"OneReplica", 1}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			h := testserver.Host(t)
			primary := start(t, h, "primary", localserver.RedisConfig{Settings: durable()})
			replica := start(t, h, "replica", localserver.RedisConfig{ReplicaOf: primary, Settings: durable()})
			var leader atomic.Pointer[string] // as a Sentinel would tell
			elect := func(s *localserver.Redis) { addr := s.Addr(); leader.Store(&addr) }
			elect(primary)
			opt := options("leader:0")
			opt.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, *leader.Load())
			}
			rdb := redis.NewClient(opt)
			t.Cleanup(func() { require.NoError(t, rdb.Close()) })

			store := open(t, rdb, redislease.Config{Replicas: tt.replicas})
			l := claim(t, store, 3)
			soon(t, "the mark is replicated", func() bool {
				return l.Extend(ctx, 100) == nil && rdb.Do(ctx, "wait", 1, 10).Val() == int64(1)
			})
			behind := dial(t, replica.Addr())
			soon(t, "the replica has it", func() bool { return behind.HExists(ctx, "{idgen}:lease", "3").Val() })
			require.NoError(t, behind.ReplicaOf(ctx, "no", "one").Err())
			err := l.Extend(ctx, 200) // the old primary does not know yet
			require.NoError(t, primary.Kill())
			elect(replica)

			if tt.replicas == 0 {
				require.NoError(t, err)
				require.ErrorIs(t, l.Extend(ctx, 300), idgen.ErrLeaseLost)
				require.Equal(t, idgen.ID(100), claim(t, store, 3).Mark(), "this is what is not guaranteed")
				return
			}
			require.ErrorContains(t, err, "0 replicas have the mark")
			one := open(t, rdb, redislease.Config{})
			require.Equal(t, idgen.ID(100), claim(t, one, 3).Mark())
			require.ErrorIs(t, l.Extend(ctx, 300), idgen.ErrLeaseLost, "as another has claimed it since")
		})
	}
}

// Processes that die without a word, and others that come, never share a number
// and never repeat an ID.
func TestManyHoldersThatComeAndGo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const holders, each = 8, 12
	server, rdb := private(t)
	store := open(t, rdb, redislease.Config{})
	store.SetTTL(20 * time.Millisecond) // most are taken from a living one
	var all sync.Map
	errs := make([]error, holders)
	var wg sync.WaitGroup
	for i := range holders {
		wg.Go(func() {
			errs[i] = func() error {
				var last *idgen.Generator
				for range each {
					g, err := idgen.Open(ctx, store, idgen.AnyShard, shortWindow)
					if errors.Is(err, idgen.ErrLeaseLost) {
						continue // expired between its claim and its first mark
					}
					if err != nil {
						return err
					}
					// One before lives on for a while, as a process that was
					// stopped would.
					for _, g := range []*idgen.Generator{g, last} {
						for range 500 {
							if g == nil {
								break
							}
							id, err := g.Next(ctx)
							if errors.Is(err, idgen.ErrLeaseLost) {
								break
							}
							if err != nil {
								return err
							}
							if _, again := all.LoadOrStore(id, true); again {
								return errors.New("an ID is repeated")
							}
						}
					}
					if last != nil {
						_ = last.Close() // ErrLeaseLost, if it was lost meanwhile
					}
					last = g
				}
				if last != nil {
					_ = last.Close()
				}
				return nil
			}()
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...), server.Addr())
	numbers := map[int]bool{}
	all.Range(func(id, _ any) bool { numbers[idgen.Default.Shard(id.(idgen.ID))] = true; return true })
	require.Less(t, len(numbers), holders*each, "numbers are given again")
}
