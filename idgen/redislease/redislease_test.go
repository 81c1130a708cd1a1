package redislease_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/internal/leasetest"
	"github.com/shardgram/shardgram/idgen/redislease"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestContract(t *testing.T) {
	t.Parallel()
	_, rdb := private(t)
	leasetest.Run(t, func(t *testing.T) leasetest.Store {
		prefix := testserver.Prefix(t)
		return leasetest.Store{
			Leases:    open(t, rdb, redislease.Config{Prefix: prefix}),
			Displaces: true,
			Expire: func(t *testing.T, shard int) {
				past := redis.Z{Score: float64(time.Now().Add(-time.Hour).UnixMilli()), Member: shard}
				require.NoError(t, rdb.ZAddXX(t.Context(), "{"+prefix+"}:expiry", past).Err())
			},
		}
	})
}

func TestNewChecksItsConfig(t *testing.T) {
	t.Parallel()
	rdb := dial(t, "127.0.0.1:1") // New does not dial
	ring := redis.NewRing(&redis.RingOptions{})
	t.Cleanup(func() { require.NoError(t, ring.Close()) })
	for _, tt := range []struct {
		name string
		rdb  redis.UniversalClient
		cfg  redislease.Config
		want string
	}{
		{"Nil", nil, redislease.Config{}, "redislease: the client is nil"},
		{"Ring", ring, redislease.Config{}, "redislease: the client is a Ring: want one whose keys have one place"},
		{"Braces", rdb, redislease.Config{Prefix: "a{b}"}, `redislease: Config.Prefix is "a{b}": want no braces`},
		{"TTL", rdb, redislease.Config{TTL: -time.Second}, "redislease: Config.TTL is -1s: want 1s or more"},
		{"Replicas", rdb, redislease.Config{Replicas: -1}, "redislease: Config.Replicas is -1: want 0 or more"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := redislease.New(tt.rdb, tt.cfg)
			require.EqualError(t, err, tt.want)
		})
	}
	_, err := redislease.New(rdb, redislease.Config{})
	require.NoError(t, err)
}

func TestClaimOfNoSuchNumber(t *testing.T) {
	t.Parallel()
	store := open(t, testserver.Redis(t), redislease.Config{AssumeDurable: true})
	for _, shard := range []int{-2, 8192} {
		_, err := store.Claim(t.Context(), shard, idgen.Default)
		require.ErrorContains(t, err, "want idgen.AnyShard, or 0 to 8191")
	}
	require.Equal(t, 8191, claim(t, store, 8191).Shard())
}

func TestAnyShardFillsTheGapsBetweenNames(t *testing.T) {
	t.Parallel()
	store := open(t, testserver.Redis(t), redislease.Config{AssumeDurable: true})
	claim(t, store, 1)
	claim(t, store, 8191)
	require.Equal(t, 0, claim(t, store, idgen.AnyShard).Shard())
	claim(t, store, 3)
	for _, want := range []int{2, 4, 5} {
		require.Equal(t, want, claim(t, store, idgen.AnyShard).Shard())
	}
}

func TestTTLIsAboutLivenessOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	store := open(t, rdb, redislease.Config{AssumeDurable: true})
	store.SetTTL(50 * time.Millisecond)
	a := claim(t, store, idgen.AnyShard)
	require.NoError(t, a.Extend(ctx, 100))
	require.Equal(t, 1, claim(t, store, idgen.AnyShard).Shard())
	var b idgen.Lease
	soon(t, "0 has expired and is given again", func() bool {
		var err error
		b, err = store.Claim(ctx, idgen.AnyShard, idgen.Default)
		require.NoError(t, err)
		return b.Shard() == 0
	})
	require.Equal(t, idgen.ID(100), b.Mark())
	require.ErrorIs(t, a.Extend(ctx, 200), idgen.ErrLeaseLost)

	// Nobody claims it, so its holder may be as late as it likes.
	soon(t, "b has expired", func() bool {
		return rdb.ZScore(ctx, "{idgen}:expiry", "0").Val() < float64(rdb.Time(ctx).Val().UnixMilli())
	})
	require.NoError(t, b.Extend(ctx, 200))
	for _, key := range rdb.Keys(ctx, "*").Val() {
		require.Equal(t, time.Duration(-1), rdb.TTL(ctx, key).Val(), "%s stays for ever", key)
	}
}

func TestPrefixesHaveNumbersOfTheirOwn(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	for _, prefix := range []string{"", "photo", "user"} {
		store := open(t, rdb, redislease.Config{Prefix: prefix, AssumeDurable: true})
		require.Equal(t, 0, claim(t, store, idgen.AnyShard).Shard())
	}
	require.ElementsMatch(t, []string{
		"{idgen}:lease", "{idgen}:expiry", "{photo}:lease", "{photo}:expiry", "{user}:lease", "{user}:expiry",
	}, rdb.Keys(t.Context(), "*").Val())
}

func TestRoundTrips(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, rdb := private(t)
	var count answers
	rdb.AddHook(&count)
	trips := func() int64 { return count.trips.Swap(0) }
	// A new connection has some of its own, and those of pipelines are others.
	require.NoError(t, rdb.Ping(ctx).Err())
	_, err := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error { return pipe.Ping(ctx).Err() })
	require.NoError(t, err)
	trips()
	round := func() (claimed, extended, released int64) {
		store := open(t, rdb, redislease.Config{})
		l := claim(t, store, 3)
		claimed = trips()
		require.NoError(t, l.Extend(ctx, l.Mark()+100))
		extended = trips()
		require.NoError(t, l.Release(ctx, l.Mark()+100))
		released = trips()
		return claimed, extended, released
	}
	claimed, extended, released := round()
	require.Equal(t, []int64{3, 2, 1}, []int64{claimed, extended, released}, "the check, and the texts of the scripts")
	claimed, extended, released = round()
	require.Equal(t, []int64{2, 1, 1}, []int64{claimed, extended, released}, "the check")
	store := open(t, rdb, redislease.Config{})
	claim(t, store, 3)
	trips()
	claim(t, store, idgen.AnyShard)
	require.Equal(t, int64(1), trips())
}

// What is stored may be anything, if another program uses the key.
func TestForeignValues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	store := open(t, rdb, redislease.Config{AssumeDurable: true})
	for _, value := range []string{"", "secret", "12", "12 secret", "-1 A secret", "9223372036854775808 A " + idgen.Default.String()} {
		require.NoError(t, rdb.HSet(ctx, "{idgen}:lease", 3, value).Err())
		_, err := store.Claim(ctx, 3, idgen.Default)
		require.ErrorContains(t, err, "redislease: claim idgen[3]: ")
		require.NotContains(t, err.Error(), "secret")
		require.NotErrorIs(t, err, idgen.ErrLeaseLost)
	}
	require.NoError(t, rdb.Del(ctx, "{idgen}:lease").Err())
	l := claim(t, store, 3)
	require.NoError(t, rdb.Set(ctx, "{idgen}:lease", "secret", 0).Err())
	err := l.Extend(ctx, 1)
	require.ErrorContains(t, err, "redislease: extend idgen[3]: ")
	require.ErrorContains(t, err, "WRONGTYPE")
	require.NotErrorIs(t, err, idgen.ErrLeaseLost)
}

// An answer that is lost leaves open what Redis holds. Whether it got the write
// or not, the holder goes on, and a stranger's write is never taken for its own.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	lost := errors.New("connection lost")
	for _, tt := range []struct {
		name string
		sent []bool // the calls of Extend that fail, and whether Redis got them
	}{
		{"Sent", []bool{true}},
		{"NotSent", []bool{false}},
		{"SentAndRepeated", []bool{true, true, true}},
		{"NeverSent", []bool{false, false, false}},
		{"SentAfterAll", []bool{false, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			rdb := testserver.Redis(t)
			var a answers
			rdb.AddHook(&a)
			store := open(t, rdb, redislease.Config{AssumeDurable: true})
			fail := func(l idgen.Lease) (mark idgen.ID) {
				mark = l.Mark() + 10
				for _, sent := range tt.sent {
					mark++
					a.lose.Store(&loss{lost, sent})
					require.ErrorIs(t, l.Extend(ctx, mark), lost)
				}
				a.lose.Store(nil)
				return mark
			}
			l := claim(t, store, 3)
			require.NoError(t, l.Extend(ctx, 1))
			for range 3 {
				mark := fail(l)
				require.NoError(t, l.Extend(ctx, mark+1))
				require.NoError(t, l.Extend(ctx, mark+2))
			}
			fail(l)
			require.NoError(t, l.Release(ctx, 12))
			l = claim(t, store, idgen.AnyShard)
			require.Equal(t, 3, l.Shard(), "it was released")
			require.Equal(t, idgen.ID(12), l.Mark())

			mark := fail(l)
			next := claim(t, store, 3)
			require.ErrorIs(t, l.Extend(ctx, mark+1), idgen.ErrLeaseLost)
			require.NoError(t, l.Release(ctx, mark))
			require.NoError(t, next.Extend(ctx, mark+1))
		})
	}
}

// After an answer was lost the mark can only go up, also when the next one that
// is asked for is lower.
func TestLostAnswersDoNotLowerTheMark(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var a answers
	rdb.AddHook(&a)
	store := open(t, rdb, redislease.Config{AssumeDurable: true})
	l := claim(t, store, 3)
	a.lose.Store(&loss{errors.New("connection lost"), true})
	require.Error(t, l.Extend(ctx, 500))
	a.lose.Store(nil)
	require.NoError(t, l.Extend(ctx, 400))
	require.Equal(t, idgen.ID(500), claim(t, store, 3).Mark())
}

// A virtual machine and its clone know the same token.
func TestOfTwoClonesOneStops(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var a answers
	rdb.AddHook(&a)
	store := open(t, rdb, redislease.Config{AssumeDurable: true})
	l := claim(t, store, 3)
	require.NoError(t, l.Extend(ctx, 100))
	clone := redislease.Clone(l)
	require.NoError(t, clone.Extend(ctx, 200))
	require.ErrorIs(t, l.Extend(ctx, 200), idgen.ErrLeaseLost, "also with the same mark")
	require.NoError(t, clone.Extend(ctx, 300))

	// Cloned while an answer is under way.
	for _, sent := range []bool{true, false} {
		l = clone
		a.lose.Store(&loss{errors.New("connection lost"), sent})
		require.Error(t, l.Extend(ctx, 1000))
		clone = redislease.Clone(l)
		a.lose.Store(nil)
		require.NoError(t, clone.Extend(ctx, 1000))
		require.ErrorIs(t, l.Extend(ctx, 1000), idgen.ErrLeaseLost)
		require.NoError(t, l.Release(ctx, 1000))
	}
}
