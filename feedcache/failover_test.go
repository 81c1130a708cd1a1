package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A lossy server loses what it was told since it was last in a safe state.
type lossy interface {
	client() *redis.Client
	safe(ctx context.Context) error
	lose(ctx context.Context) error
}

// A standby is a primary and a replica behind one name, which a failover moves
// to the replica, as Sentinel would.
type standby struct {
	servers [2]*localserver.Redis
	clients [2]*redis.Client
	primary atomic.Int64
	rdb     *redis.Client
	cut     bool
}

func newStandby(t *testing.T) lossy {
	t.Helper()
	host := testserver.Host(t)
	s := &standby{}
	for i := range s.servers {
		server, err := host.Redis(t.Context(), fmt.Sprint("server-", i), localserver.RedisConfig{ReplicaOf: s.servers[0]})
		require.NoError(t, err)
		s.servers[i], s.clients[i] = server, direct(t, server)
	}
	s.rdb = redis.NewClient(&redis.Options{
		Addr: "primary:6379",
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, s.servers[s.primary.Load()].Addr())
		},
	})
	t.Cleanup(func() { require.NoError(t, s.rdb.Close()) })
	return s
}

// direct returns a client of one server, whatever its role.
func direct(t *testing.T, server *localserver.Redis) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func (s *standby) client() *redis.Client { return s.rdb }

// follow points the replica at a port and waits until its link is as told.
func (s *standby) follow(ctx context.Context, replica *redis.Client, port int, link string) error {
	if err := replica.ReplicaOf(ctx, "127.0.0.1", strconv.Itoa(port)).Err(); err != nil {
		return err
	}
	return eventually(func() error {
		info, err := replica.Info(ctx, "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:"+link) {
			err = errors.New("the replica's link is not " + link)
		}
		return err
	})
}

// eventually tries until there is no error, for a minute at most.
func eventually(try func() error) error {
	err := try()
	for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); err = try() {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// safe brings the replica up to date and cuts it off from what follows.
func (s *standby) safe(ctx context.Context) error {
	at := s.primary.Load()
	if s.cut {
		if err := s.follow(ctx, s.clients[1-at], s.servers[at].Port(), "up"); err != nil {
			return err
		}
	}
	if n, err := s.clients[at].Wait(ctx, 1, 20*time.Second).Result(); err != nil || n != 1 {
		return fmt.Errorf("%d replicas are up to date: %w", n, err)
	}
	s.cut = true
	const nobody = 1
	return s.follow(ctx, s.clients[1-at], nobody, "down")
}

// lose fails over to the replica.
func (s *standby) lose(ctx context.Context) error {
	at := s.primary.Load()
	if err := s.clients[1-at].ReplicaOf(ctx, "NO", "ONE").Err(); err != nil {
		return err
	}
	s.primary.Store(1 - at)
	s.cut = true
	if err := s.follow(ctx, s.clients[at], s.servers[1-at].Port(), "up"); err != nil {
		return err
	}
	return s.clients[at].ClientKillByFilter(ctx, "type", "normal").Err()
}

// A saved is a server that is killed and starts again from its last snapshot.
type saved struct {
	server *localserver.Redis
	rdb    *redis.Client
}

func newSaved(t *testing.T) lossy {
	t.Helper()
	server, err := testserver.Host(t).Redis(t.Context(), "server", localserver.RedisConfig{})
	require.NoError(t, err)
	return saved{server, direct(t, server)}
}

func (s saved) client() *redis.Client { return s.rdb }

func (s saved) safe(ctx context.Context) error { return s.rdb.Save(ctx).Err() }

func (s saved) lose(ctx context.Context) error {
	return errors.Join(s.server.Kill(), s.server.Restart(ctx))
}

// Nothing is lost on a server that loses pushes, removals, edits and leases. The
// control: where pages trust what they once knew of the server, the model finds
// what was lost.
func TestServerThatLosesWrites(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		start func(t *testing.T) lossy
		check time.Duration
		seeds uint64
		want  error
	}{
		{"FailoverToAReplicaThatLags", newStandby, 1, 8, nil},
		{"FailoverNobodyLooksFor", newStandby, time.Hour, 30, errLost},
		{"RestartFromAnOldSnapshot", newSaved, 1, 8, nil},
		{"RestartNobodyLooksFor", newSaved, time.Hour, 30, errLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := tc.start(t)
			losses := 0
			err := search(tc.seeds, tc.want, func(draw func(int) int, seed int64) error {
				m := newModel(draw, seed, idAt(3, 0))
				m.fault = func(ctx context.Context) error {
					if draw(2) == 0 {
						return s.safe(ctx)
					}
					losses++
					err := s.lose(ctx)
					if tc.want == nil && draw(2) == 0 { // one learns of it from somebody else's feed
						_, failed := m.feed().Page(ctx, m.owner+1000, 0, 1)
						err = errors.Join(err, failed)
					}
					return err
				}
				err := m.open(s.client(), 2, feedcache.Config{Cap: 20, FailoverCheck: tc.check})
				if err != nil {
					return err
				}
				return m.run(t.Context(), 80, false)
			})
			t.Logf("%d times", losses)
			if tc.want == nil {
				require.NoError(t, err)
				require.Greater(t, losses, int(tc.seeds))
			}
			require.ErrorIs(t, err, tc.want)
		})
	}
}

// A failover by Sentinel, to a replica that lags and in the middle of pushes
// that are repeated until they arrive, loses none of them.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	host := testserver.Host(t)
	first, err := host.Redis(ctx, "first", localserver.RedisConfig{})
	require.NoError(t, err)
	second, err := host.Redis(ctx, "second", localserver.RedisConfig{ReplicaOf: first})
	require.NoError(t, err)
	sentinel, err := host.Sentinel(ctx, "sentinel", localserver.SentinelConfig{Primary: first, DownAfter: 300 * time.Millisecond})
	require.NoError(t, err)
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: sentinel.Master(), SentinelAddrs: []string{sentinel.Addr()}, DialerRetries: 1, PoolSize: 100,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var src table
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 100, FailoverCheck: 50 * time.Millisecond})
	const owners = 50
	everyone := seq(owners, 1)
	for _, owner := range everyone {
		src.insert(owner, 1)
		_, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
	}

	// The replica does not hear of the pushes that follow.
	replica := direct(t, second)
	require.EqualValues(t, 1, direct(t, first).Wait(ctx, 1, 20*time.Second).Val())
	require.NoError(t, replica.ConfigSet(ctx, "masterauth", "wrong").Err())
	require.NoError(t, direct(t, first).ClientKillByFilter(ctx, "type", "replica").Err())
	for _, owner := range everyone {
		src.insert(owner, 2)
	}
	d, err := feeds.Push(ctx, slices.Values(everyone), 2)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: owners}, d)

	var killing sync.WaitGroup
	var killed error
	for id := int64(3); id <= 60; id++ {
		if id == 10 {
			killing.Go(func() { killed = first.Kill() })
		}
		for _, owner := range everyone {
			src.insert(owner, id)
		}
		require.NoError(t, eventually(func() error {
			_, err := feeds.Push(ctx, slices.Values(everyone), id)
			return err
		}))
	}
	killing.Wait()
	require.NoError(t, killed)
	role, err := replica.Do(ctx, "role").Slice()
	require.NoError(t, err)
	require.Equal(t, "master", role[0])
	for _, owner := range everyone {
		got, err := walk(ctx, feeds, owner, 25)
		require.NoError(t, err)
		require.Equal(t, seq(60, 1), got)
	}
	d, err = feeds.Push(ctx, one(1), 61)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 1}, d, "feeds are kept on the new server")
}
