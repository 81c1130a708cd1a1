package hashkv_test

import (
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/stretchr/testify/require"
)

func logOf(buckets int) int { return bits.TrailingZeros(uint(buckets)) }

// join is the inverse of hashkv.Split, written from its description: the
// lowest bit that is still missing follows from the bits above it.
func join(bucket, rest uint64, n int) uint64 {
	for i := n - 1; i >= 0; i-- {
		// Splitting off one bit with 0 in its place tells the hash of rest.
		hash, _ := hashkv.Split(rest<<1, 1)
		rest = rest<<1 | (bucket>>i&1 ^ hash)
	}
	return rest
}

func FuzzSplit(f *testing.F) {
	for _, n := range []uint8{0, 1, 13, 31, 32} {
		for _, key := range []uint64{0, 1, 1 << 63, 1<<64 - 1, 0x0123456789abcdef} {
			f.Add(key, n)
		}
	}
	f.Fuzz(func(t *testing.T, key uint64, n uint8) {
		bits := int(n % 33)
		bucket, rest := hashkv.Split(key, bits)
		require.Zero(t, bucket>>bits, "bucket of too many bits")
		require.Equal(t, key, join(bucket, rest, bits))
		finer, _ := hashkv.Split(key, bits+1)
		require.Equal(t, bucket, finer&(1<<bits-1), "twice the buckets would move the entry elsewhere")
	})
}

func FuzzUnpack(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x01", "12", "\xff\xff\xff\xff\xff\xff\xff\xff", "123456789"} {
		f.Add(s, int64(len(s)))
	}
	f.Fuzz(func(t *testing.T, s string, x int64) {
		back, err := hashkv.Unpack(hashkv.Pack(x))
		require.NoError(t, err)
		require.Equal(t, x, back)
		if y, err := hashkv.Unpack(s); err == nil {
			require.Equal(t, s, hashkv.Pack(y), "two byte strings for one number")
		}
	})
}

// TestSplitIsFixed: a change here would lose every entry of every stored map.
func TestSplitIsFixed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ key, bucket, rest uint64 }{
		{0, 0, 0},
		{1155315, 0x9bc20, 1},
		{1<<64 - 1, 0xab2c2, 0xfffffffffff},
		{0x0123456789abcdef, 0x6c985, 0x123456789a},
		{0x2e90edd000019001, 0x1f4ed, 0x2e90edd0000},
	} {
		bucket, rest := hashkv.Split(c.key, 20)
		require.Equal(t, c.rest, rest, "%#x", c.key)
		require.Equal(t, c.bucket, bucket, "%#x", c.key)
	}
}

// snowflake returns an id of 41 bits of milliseconds, 13 of shard and 10 of
// sequence, about 50 per second.
func snowflake(r *rand.Rand, i int64) int64 {
	ms := int64(400_000_000_000) + i*20 + r.Int64N(20)
	return ms<<23 | r.Int64N(8192)<<10 | r.Int64N(3)
}

// TestSplitIsEven: whatever the keys have in common, the fullest of 1024
// buckets is what chance would make it, far below the limit of 512.
func TestSplitIsEven(t *testing.T) {
	t.Parallel()
	const buckets, mean = 1024, 128
	r := rand.New(rand.NewPCG(1, 2))
	for name, key := range map[string]func(i int64) int64{
		"Sequence":       func(i int64) int64 { return i },
		"EvenNumbers":    func(i int64) int64 { return 2 * i },
		"Thousands":      func(i int64) int64 { return 1000 * i },
		"SameLowBits":    func(i int64) int64 { return i<<32 | 0xabcdef },
		"OnlyHighBits":   func(i int64) int64 { return i << 46 },
		"Random":         func(int64) int64 { return int64(r.Uint64()) },
		"Snowflakes":     func(i int64) int64 { return snowflake(r, i) },
		"OneShard":       func(i int64) int64 { return snowflake(r, i)&^(8191<<10|1023) | 77<<10 },
		"NegativeNumber": func(i int64) int64 { return -i },
	} {
		var load [buckets]int
		for i := range int64(buckets * mean) {
			bucket, _ := hashkv.Split(uint64(key(i)), logOf(buckets))
			load[bucket]++
		}
		// Poisson with mean 128: more than 190 has a chance of 1e-7 a bucket.
		for bucket, n := range load {
			require.Less(t, n, 190, "%s: bucket %d", name, bucket)
			require.Greater(t, n, 75, "%s: bucket %d", name, bucket)
		}
	}
}
