package hashkv_test

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// FuzzSplit: at every level, bucket and rest together are the key, and a level
// more divides each bucket in two.
func FuzzSplit(f *testing.F) {
	for _, level := range []uint8{0, 1, 8, 13, 20, 39} {
		for _, key := range []uint64{0, 1, 1 << 63, 1<<64 - 1, 0x0123456789abcdef} {
			f.Add(key, level)
		}
	}
	f.Fuzz(func(t *testing.T, key uint64, level uint8) {
		n := int(level) % hashkv.MaxLevel
		bucket, rest := hashkv.Split(key, n)
		require.Zero(t, bucket>>n, "a bucket that is not there")
		require.Equal(t, key>>n, rest, "the rest must be short: its leading zeros are not stored")
		require.Equal(t, key, hashkv.Join(bucket, rest, n))

		finer, _ := hashkv.Split(key, n+1)
		require.Equal(t, bucket, finer&(1<<n-1), "growing would move the entry to a bucket that is no half")
	})
}

// TestSplitIsABijection has no luck: on a small domain it looks at everything.
func TestSplitIsABijection(t *testing.T) {
	t.Parallel()
	const domain = 12
	for n := range domain + 1 {
		type place struct{ bucket, rest uint64 }
		seen := make(map[place]bool)
		for key := range uint64(1 << domain) {
			bucket, rest := hashkv.Split(key, n)
			if bucket>>n == 0 && rest>>(domain-n) == 0 {
				seen[place{bucket, rest}] = true
			}
		}
		require.Len(t, seen, 1<<domain)
	}
}

func FuzzPack(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x01", "12", "\x00\x01", "\xff\xff\xff\xff\xff\xff\xff\xff", "123456789"} {
		f.Add(s, uint64(len(s)))
	}
	f.Fuzz(func(t *testing.T, s string, x uint64) {
		packed := hashkv.Pack(x)
		require.Len(t, packed, (bits.Len64(x)+7)/8)
		back, err := hashkv.Unpack(packed)
		require.NoError(t, err)
		require.Equal(t, x, back)
		if y, err := hashkv.Unpack(s); err == nil {
			require.Equal(t, s, hashkv.Pack(y), "two texts for one number")
		} else {
			require.True(t, len(s) > 8 || s[0] == 0, "%q is refused", s)
		}
	})
}

// FuzzMask: squeezing keeps the live bits, all of them and in their order.
func FuzzMask(f *testing.F) {
	for _, live := range []uint64{0, 1, 1 << 63, 1<<64 - 1, 0xf0f0, 0x5555555555555555, 0x7fffffffff8003ff} {
		f.Add(live, uint64(0x0123456789abcdef))
	}
	f.Fuzz(func(t *testing.T, live, x uint64) {
		width := hashkv.Width(live)
		require.Equal(t, bits.OnesCount64(live), width)
		var want uint64 // bit by bit
		at := 0
		for bit := range 64 {
			if live>>bit&1 == 1 {
				want |= x >> bit & 1 << at
				at++
			}
		}
		y := hashkv.Squeeze(live, x)
		require.Equal(t, want, y)
		require.Equal(t, x&live, hashkv.Stretch(live, y))
	})
}

// TestSplitIsFixed: a change here would lose every entry of every stored map.
func TestSplitIsFixed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key    uint64
		level  int
		bucket uint64
		rest   uint64
	}{
		{0, 20, 0, 0},
		{1155315, 20, 0x9bc20, 1},
		{1<<64 - 1, 20, 0xab2c2, 0xfffffffffff},
		{0x0123456789abcdef, 20, 0x6c985, 0x123456789a},
		{0x2e90edd000019001, 20, 0x1f4ed, 0x2e90edd0000},
		{0x2e90edd000019001, 8, 0xed, 0x2e90edd0000190},
	} {
		bucket, rest := hashkv.Split(c.key, c.level)
		require.Equal(t, c.bucket, bucket, "%#x", c.key)
		require.Equal(t, c.rest, rest, "%#x", c.key)
	}
}

// TestHashIsFixed: as above, for maps with string keys.
func TestHashIsFixed(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]uint64{
		"":           mixOf(0xcbf29ce484222325), // the published FNV-1a of these
		"a":          mixOf(0xaf63dc4c8601ec8c),
		"foobar":     mixOf(0x85944171f73967e8),
		"\x00\xff":   0xa70bee94c6c8447b,
		"user:12345": 0x2f7466997161b53f,
	} {
		require.Equal(t, want, hashkv.Hash(key), "%q", key)
	}
}

// mixOf is the finalizer of SplitMix64, as its authors print it.
func mixOf(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// snowflake returns an id of 41 bits of milliseconds, 13 of shard and 10 of
// sequence, about 50 per second.
func snowflake(r *rand.Rand, i int64) int64 {
	ms := int64(400_000_000_000) + i*20 + r.Int64N(20)
	return ms<<23 | r.Int64N(8192)<<10 | r.Int64N(3)
}

// TestPlacesAreEven: whatever the keys have in common, the fullest of 1024
// buckets is what chance would make it, far below the limit of 512.
func TestPlacesAreEven(t *testing.T) {
	t.Parallel()
	const level, mean = 10, 128
	r := rand.New(rand.NewPCG(1, 2))
	split := func(key func(i int64) int64) func(i int64) uint64 {
		return func(i int64) uint64 {
			bucket, _ := hashkv.Split(uint64(key(i)), level)
			return bucket
		}
	}
	hash := func(key func(i int64) string) func(i int64) uint64 {
		return func(i int64) uint64 { return hashkv.Hash(key(i)) & (1<<level - 1) }
	}
	for _, c := range []struct {
		name   string
		bucket func(i int64) uint64
	}{
		{"Sequence", split(func(i int64) int64 { return i })},
		{"EvenNumbers", split(func(i int64) int64 { return 2 * i })},
		{"Thousands", split(func(i int64) int64 { return 1000 * i })},
		{"SameLowBits", split(func(i int64) int64 { return i<<32 | 0xabcdef })},
		{"OnlyHighBits", split(func(i int64) int64 { return i << 46 })},
		{"Random", split(func(int64) int64 { return int64(r.Uint64()) })},
		{"Snowflakes", split(func(i int64) int64 { return snowflake(r, i) })},
		{"SnowflakesOfOneShard", split(func(i int64) int64 { return snowflake(r, i)&^(8191<<10|1023) | 77<<10 })},
		{"NegativeNumbers", split(func(i int64) int64 { return -i })},
		{"TextOfNumbers", hash(func(i int64) string { return fmt.Sprint(i) })},
		{"TextWithPrefix", hash(func(i int64) string { return fmt.Sprintf("user:%08d", i) })},
		{"TextWithSuffix", hash(func(i int64) string { return fmt.Sprintf("%d@example.com", i) })},
		{"OneLetterRepeated", hash(func(i int64) string { return fmt.Sprint(i) + strings.Repeat("a", 40) })},
	} {
		var load [1 << level]int
		for i := range int64(mean << level) {
			load[c.bucket(i)]++
		}
		// Poisson with mean 128: more than 190 has a chance of 1e-7 a bucket.
		require.Less(t, slices.Max(load[:]), 190, c.name)
		require.Greater(t, slices.Min(load[:]), 75, c.name)
	}
}

// TestTagsChooseTheirSlot asks a server that has to know.
func TestTagsChooseTheirSlot(t *testing.T) {
	t.Parallel()
	server, err := testserver.Host(t).Redis(t.Context(), "node", localserver.RedisConfig{
		Settings: map[string]string{"cluster-enabled": "yes", "cluster-port": "0"},
	})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()

	const slots = 1 << hashkv.SlotBits
	plain := regexp.MustCompile(`^[0-9A-Za-z]{3}$`)
	seen := make(map[string]bool)
	pipe := rdb.Pipeline()
	asked := make([]*redis.IntCmd, slots)
	for slot := range slots {
		tag := hashkv.Tag(slot)
		seen[tag] = true
		name := hashkv.BucketName("pre:fix", hashkv.SlotBits, uint64(slot), hashkv.SlotBits)
		if !plain.MatchString(tag) || tagOf(name) != tag {
			require.Fail(t, "not a tag", "slot %d: %q in %s", slot, tag, name)
		}
		asked[slot] = pipe.ClusterKeySlot(t.Context(), name)
	}
	require.Len(t, seen, slots, "two slots have the same tag")
	_, err = pipe.Exec(t.Context())
	require.NoError(t, err)
	for slot, cmd := range asked {
		if cmd.Val() != int64(slot) {
			require.Fail(t, "another slot", "%v: want %d", cmd, slot)
		}
	}
}

// TestBucketNames: no two buckets of any level share a name, and the halves of
// a bucket have its tag.
func TestBucketNames(t *testing.T) {
	t.Parallel()
	for _, tagged := range []int{hashkv.MinLevel, 11, 13} {
		seen := make(map[string]bool)
		all := 0
		for level := tagged; level < tagged+3; level++ {
			slots := make(map[string]int)
			for bucket := range uint64(1) << level {
				name := hashkv.BucketName("map", level, bucket, tagged)
				seen[name] = true
				slots[tagOf(name)]++
				if level == tagged {
					continue
				}
				parent := hashkv.BucketName("map", level-1, bucket&(1<<(level-1)-1), tagged)
				if tagOf(parent) != tagOf(name) {
					require.Fail(t, "no script can split this", "%s into %s", parent, name)
				}
			}
			require.Len(t, slots, 1<<tagged, "buckets are spread over as many slots as there can be")
			all += 1 << level
		}
		require.Len(t, seen, all, "two buckets have the same name")
	}
}

func tagOf(name string) string {
	_, rest, _ := strings.Cut(name, "{")
	tag, _, _ := strings.Cut(rest, "}")
	return tag
}

// TestBucketNamesAreFixed: a change here would lose every stored map, too.
func TestBucketNamesAreFixed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		level  int
		bucket uint64
		tagged int
		want   string
	}{
		{8, 0, 8, "sparse:{06S}1"},
		{8, 255, 8, "sparse:{45c}1"},
		{9, 255, 8, "sparse:{45c}2"},
		{9, 511, 8, "sparse:{45c}3"},
		{14, 1, 14, "sparse:{2Gx}1"},
		{21, 0x1abcde, 14, "sparse:{BTn}ea"},
		{40, 1<<40 - 1, 14, "sparse:{6ZJ}7ffffff"},
	} {
		require.Equal(t, c.want, hashkv.BucketName("sparse", c.level, c.bucket, c.tagged))
	}
}
