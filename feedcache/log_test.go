package feedcache_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
)

// raw builds a value from parts: the format, written a second time.
func raw(tag string, floor uint64, ops ...uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(tag), floor)
	for _, op := range ops {
		b = binary.BigEndian.AppendUint64(b, op)
	}
	return b
}

const (
	readyTag = "\xfcRgenera"
	removed  = uint64(1) << 63
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		value []byte
		ok    bool
		floor int64
		live  []int64
		kept  int // with the removed ones
	}{
		{name: "Empty", value: raw(readyTag, 0), ok: true},
		{name: "Building", value: raw("\xfcBgenera", 0, 5), ok: true, live: []int64{5}, kept: 1},
		{name: "AnyOrder", value: raw(readyTag, 0, 5, 9, 7), ok: true, live: []int64{9, 7, 5}, kept: 3},
		{name: "Repeated", value: raw(readyTag, 0, 5, 9, 5, 9), ok: true, live: []int64{9, 5}, kept: 2},
		{
			name: "RemovedAfter", value: raw(readyTag, 0, 5, 9, 5|removed), ok: true,
			live: []int64{9}, kept: 2,
		},
		{
			name: "RemovedBefore", value: raw(readyTag, 0, 5|removed, 5, 9, 5), ok: true,
			live: []int64{9}, kept: 2,
		},
		{
			name: "BelowFloor", value: raw(readyTag, 7, 6, 7, 8, 6|removed), ok: true,
			floor: 7, live: []int64{8, 7}, kept: 2,
		},
		{
			name: "Largest", value: raw(readyTag, 0, math.MaxInt64-1, math.MaxInt64-2), ok: true,
			live: []int64{math.MaxInt64 - 1, math.MaxInt64 - 2}, kept: 2,
		},
		{name: "Nil"},
		{name: "NoMagic", value: raw("\xfdRgenera", 0, 5)},
		{name: "LaterVersion", value: raw("\xfcSgenera", 0, 5)},
		{name: "ShortHeader", value: raw(readyTag, 0)[:15]},
		{name: "OddLength", value: raw(readyTag, 0, 5)[:23]},
		{name: "NegativeFloor", value: raw(readyTag, removed, 5)},
		{name: "ZeroID", value: raw(readyTag, 0, 5, 0)},
		{name: "ZeroRemoved", value: raw(readyTag, 0, removed)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, ok := feedcache.Parse(test.value)
			require.Equal(t, test.ok, ok)
			if !ok {
				return
			}
			live, more := l.Below(feedcache.Top, 100)
			require.False(t, more)
			require.Equal(t, test.live, live)
			require.Equal(t, test.floor, l.Floor())
			require.Equal(t, test.kept, l.Len())
		})
	}
}

func TestBelow(t *testing.T) {
	t.Parallel()
	l, ok := feedcache.Parse(raw(readyTag, 3, 10, 3, 8, 6, 8|removed, 4))
	require.True(t, ok)
	tests := []struct {
		name   string
		before int64
		n      int
		ids    []int64
		more   bool
	}{
		{name: "All", before: feedcache.Top, n: 4, ids: []int64{10, 6, 4, 3}},
		{name: "Part", before: feedcache.Top, n: 3, ids: []int64{10, 6, 4}, more: true},
		{name: "BelowAnEntry", before: 10, n: 1, ids: []int64{6}, more: true},
		{name: "BelowARemovedEntry", before: 8, n: 3, ids: []int64{6, 4, 3}},
		{name: "BetweenEntries", before: 5, n: 3, ids: []int64{4, 3}},
		{name: "AtTheFloor", before: 3, n: 3},
		{name: "BelowTheFloor", before: 1, n: 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ids, more := l.Below(test.before, test.n)
			require.Equal(t, test.ids, ids)
			require.Equal(t, test.more, more)
		})
	}
}

func TestBelowDoesNotPromiseARemovedEntry(t *testing.T) {
	t.Parallel()
	l, _ := feedcache.Parse(raw(readyTag, 0, 10, 8, 8|removed))
	ids, more := l.Below(feedcache.Top, 1)
	require.Equal(t, []int64{10}, ids)
	require.False(t, more)
}

func TestTrim(t *testing.T) {
	t.Parallel()
	l, _ := feedcache.Parse(raw(readyTag, 2, 10, 8, 6, 8|removed, 4))
	require.Equal(t, int64(2), l.Trim(4).Floor(), "nothing cut, so nothing less complete")
	for n, want := range map[int][]int64{3: {10, 6}, 2: {10}, 1: {10}} {
		trimmed := l.Trim(n)
		live, _ := trimmed.Below(feedcache.Top, 10)
		require.Equal(t, want, live)
		require.Equal(t, n, trimmed.Len())
	}
	require.Equal(t, int64(8), l.Trim(2).Floor(), "the floor is at a removed entry, which stays")
	require.Equal(t, int64(10), l.Trim(1).Floor())
}

func TestFromSource(t *testing.T) {
	t.Parallel()
	require.Equal(t, int64(0), feedcache.FromSource([]int64{9, 7}, 3).Floor())
	require.Equal(t, int64(5), feedcache.FromSource([]int64{9, 7, 5}, 3).Floor())
	require.Equal(t, int64(0), feedcache.FromSource(nil, 3).Floor())
	ids, _ := feedcache.FromSource([]int64{9, 7, 5}, 3).Below(feedcache.Top, 3)
	require.Equal(t, []int64{9, 7, 5}, ids)
}

func TestFormat(t *testing.T) {
	t.Parallel()
	l := feedcache.FromSource([]int64{9, 7, 5}, 3)
	require.Equal(t, raw(readyTag, 5, 5, 7, 9), l.Encode(readyTag))
	require.Equal(t, raw("", 9|removed, 7|removed), feedcache.EncodeOps([]int64{9, 7}, feedcache.Removal))
	tag := feedcache.NewTag(feedcache.Ready)
	require.Len(t, tag, 8)
	require.Equal(t, "\xfcR", tag[:2])
	require.NotEqual(t, tag, feedcache.NewTag(feedcache.Ready))
}

func FuzzParse(f *testing.F) {
	f.Add(raw(readyTag, 0, 5, 9, 7, 9|removed))
	f.Add(raw("\xfcBgenera", 7, 5, 9, 9))
	f.Add(raw(readyTag, math.MaxInt64, math.MaxInt64, math.MaxUint64))
	f.Add(raw(readyTag, removed))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, value []byte) {
		before := bytes.Clone(value)
		l, ok := feedcache.Parse(value)
		require.Equal(t, before, value, "parse must not write to the value")
		if !ok {
			return
		}
		// The oracle: two sets.
		adds, removals := map[int64]bool{}, map[int64]bool{}
		for op := range slices.Chunk(value[16:], 8) {
			n := binary.BigEndian.Uint64(op)
			if id := int64(n &^ removed); id >= l.Floor() {
				adds[id] = adds[id] || n&removed == 0
				removals[id] = removals[id] || n&removed != 0
			}
		}
		var want []int64
		for id, added := range adds {
			if added && !removals[id] && id < feedcache.Top {
				want = append(want, id)
			}
		}
		slices.Sort(want)
		slices.Reverse(want)
		live, more := l.Below(feedcache.Top, len(want)+1)
		require.True(t, slices.Equal(want, live), "want %v, have %v", want, live)
		require.False(t, more)

		again, ok := feedcache.Parse(l.Encode(string(value[:8])))
		require.True(t, ok)
		require.Equal(t, l, again)
		for n := 1; n <= l.Len(); n += 1 + n/2 {
			trimmed := l.Trim(n)
			require.Equal(t, n, trimmed.Len())
			kept, _ := trimmed.Below(feedcache.Top, n)
			require.True(t, slices.Equal(live[:len(kept)], kept))
			if len(kept) < len(live) {
				require.Less(t, live[len(kept)], trimmed.Floor(), "what is cut is below the floor")
			}
		}
	})
}
