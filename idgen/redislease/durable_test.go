package redislease_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestOnlyADurableServerWillDo(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	for i, tt := range []struct {
		name     string
		settings map[string]string // beside those of a durable server
		want     string
	}{
		{"NoAppendOnlyFile", map[string]string{"appendonly": "no"}, `appendonly is "no": want yes`},
		{"SyncedEverySecond", map[string]string{"appendfsync": "everysec"}, `appendfsync is "everysec": want always`},
		{"NotSynced", map[string]string{"appendfsync": "no"}, `appendfsync is "no": want always`},
		{
			"NotSyncedDuringARewrite",
			map[string]string{"no-appendfsync-on-rewrite": "yes"},
			`no-appendfsync-on-rewrite is "yes": want no`,
		},
		{"Evicts", map[string]string{"maxmemory-policy": "allkeys-lru"}, `maxmemory-policy is "allkeys-lru": want noeviction`},
		{"HidesConfig", map[string]string{"rename-command": `CONFIG ""`}, "it does not show its settings: see Config.AssumeDurable"},
		{"EvictsWhatExpires", map[string]string{"maxmemory-policy": "volatile-lru"}, ""},
		{"Durable", nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			settings := durable()
			maps.Copy(settings, tt.settings)
			rdb := dial(t, start(t, h, fmt.Sprintf("redis-%d", i), localserver.RedisConfig{Settings: settings}).Addr())
			_, err := open(t, rdb, redislease.Config{}).Claim(ctx, 3, idgen.Default)
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, redislease.ErrNotDurable)
			require.ErrorContains(t, err, "redislease: claim idgen[3]: redislease: the server may forget marks: "+tt.want)
			require.Zero(t, rdb.Exists(ctx, "{idgen}:lease").Val(), "nothing is claimed")
			claim(t, open(t, rdb, redislease.Config{AssumeDurable: true}), 3)
		})
	}
}

func TestAServerWhoseAccessListHidesItsSettings(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	for _, command := range []string{"config", "info"} {
		acl := func(rule string) {
			require.NoError(t, rdb.Do(ctx, "acl", "setuser", "default", rule+command).Err())
		}
		acl("-")
		_, err := open(t, rdb, redislease.Config{}).Claim(ctx, 3, idgen.Default)
		require.ErrorIs(t, err, redislease.ErrNotDurable)
		require.ErrorContains(t, err, "NOPERM")
		claim(t, open(t, rdb, redislease.Config{AssumeDurable: true}), 3)
		acl("+")
	}
}

func TestTheCheckIsRepeatedUntilItPasses(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	store := open(t, rdb, redislease.Config{})
	set := func(value string) { require.NoError(t, rdb.ConfigSet(ctx, "appendfsync", value).Err()) }
	set("everysec")
	for range 2 {
		_, err := store.Claim(ctx, 3, idgen.Default)
		require.ErrorIs(t, err, redislease.ErrNotDurable)
	}
	set("always")
	claim(t, store, 3)
	set("everysec")
	claim(t, store, 3) // once is enough
}

func TestACheckThatCannotBeMadeIsNoVerdict(t *testing.T) {
	t.Parallel()
	server, rdb := private(t)
	require.NoError(t, server.Kill())
	_, err := open(t, rdb, redislease.Config{}).Claim(t.Context(), 3, idgen.Default)
	require.Error(t, err)
	require.NotErrorIs(t, err, redislease.ErrNotDurable)
}

// What a server that forgets does to those who took it on trust: the holder
// stops at its next Extend, as its record is gone, and the next one gets no
// mark.
func TestAServerThatForgets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := start(t, testserver.Host(t), "redis", localserver.RedisConfig{Settings: map[string]string{"appendonly": "no"}})
	rdb := dial(t, server.Addr())
	store := open(t, rdb, redislease.Config{AssumeDurable: true})
	for _, tt := range []struct {
		name   string
		forget func() error
	}{
		{"FlushAll", func() error { return rdb.FlushAll(ctx).Err() }},
		{"DeletedRecords", func() error { return rdb.Del(ctx, "{idgen}:lease").Err() }},
		{"Restart", func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			return server.Restart(ctx)
		}},
	} {
		l := claim(t, store, 3)
		require.NoError(t, l.Extend(ctx, 100), tt.name)
		require.NoError(t, tt.forget(), tt.name)
		require.ErrorIs(t, l.Extend(ctx, 200), idgen.ErrLeaseLost, tt.name)
		require.NoError(t, l.Release(ctx, 150), tt.name)
		require.ErrorIs(t, rdb.HGet(ctx, "{idgen}:lease", "3").Err(), redis.Nil, tt.name)
		next := claim(t, store, 3)
		require.Zero(t, next.Mark(), tt.name)
		require.ErrorIs(t, l.Extend(ctx, 300), idgen.ErrLeaseLost, tt.name)
		require.NoError(t, next.Release(ctx, 0), tt.name)
	}
	// Without its record a generator stops too.
	g, err := idgen.Open(ctx, store, idgen.AnyShard, shortWindow)
	require.NoError(t, err)
	require.NoError(t, rdb.FlushAll(ctx).Err())
	require.ErrorIs(t, drain(t, g), idgen.ErrLeaseLost)
	require.NoError(t, g.Close())
}
