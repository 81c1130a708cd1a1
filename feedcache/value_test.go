package feedcache_test

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/feedcache"
)

// The bytes of a feed, written a second time.
const (
	readyTag    = "\xfcLgenera"
	buildingTag = "\xfcBgenera"
	server      = "0123456789abcdef"
	removed     = uint64(1) << 63
)

// packed is a run of numbers of eight bytes.
func packed(numbers ...uint64) string {
	var b []byte
	for _, n := range numbers {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return string(b)
}

// head is the element at index 1, with deadline 7.
func head(tag string, floor, headFloor, mark uint64, ops ...uint64) string {
	return tag + packed(floor, headFloor) + server + packed(7, mark) + packed(ops...)
}

func TestParse(t *testing.T) {
	t.Parallel()
	op := func(n uint64) string { return packed(n) }
	tests := []struct {
		name    string
		list    []string
		partial bool // the list begins at index 1
		bad     bool
		floor   int64
		bottom  int64
		mark    int64
		live    []int64
		kept    int // with the removed ones
		deep    bool
	}{
		{name: "Empty", list: []string{"", head(readyTag, 0, 0, 0)}},
		{name: "Building", list: []string{"", head(buildingTag, 0, 0, 0), op(5)}, live: []int64{5}, kept: 1},
		{
			name: "AnyOrder", list: []string{"", head(readyTag, 0, 0, 0, 6), op(5), op(9), op(7)},
			live: []int64{9, 7, 6, 5}, kept: 4,
		},
		{
			name: "RestAndHead", list: []string{packed(2, 3), head(readyTag, 2, 5, 0, 5, 6), op(9), op(4)},
			floor: 2, bottom: 2, live: []int64{9, 6, 5, 4, 3, 2}, kept: 6,
		},
		{
			name: "HeadOnly", partial: true, list: []string{head(readyTag, 2, 5, 0, 5, 6), op(9)},
			floor: 2, bottom: 5, live: []int64{9, 6, 5}, kept: 3,
		},
		{
			name: "HeadOnlyWithALateID", partial: true, list: []string{head(readyTag, 2, 5, 0, 5, 6), op(4)},
			floor: 2, bottom: 5, live: []int64{6, 5}, kept: 2, deep: true,
		},
		{
			name: "HeadOnlyWithALateRemoval", partial: true, list: []string{head(readyTag, 2, 5, 0, 5, 6), op(2 | removed)},
			floor: 2, bottom: 5, live: []int64{6, 5}, kept: 2, deep: true,
		},
		{
			name: "HeadOnlyWithAnIDBelowTheFloor", partial: true, list: []string{head(readyTag, 2, 5, 0, 5, 6), op(1)},
			floor: 2, bottom: 5, live: []int64{6, 5}, kept: 2,
		},
		{
			name: "HeadThatIsAll", partial: true, list: []string{head(readyTag, 2, 2, 0, 5, 6), op(1)},
			floor: 2, bottom: 2, live: []int64{6, 5}, kept: 2,
		},
		{
			name: "Repeated", list: []string{packed(5), head(readyTag, 0, 9, 0, 9), op(5), op(9)},
			live: []int64{9, 5}, kept: 2,
		},
		{
			name: "RemovedAfter", list: []string{packed(5), head(readyTag, 0, 9, 0, 9), op(5 | removed)},
			live: []int64{9}, kept: 2,
		},
		{
			name: "RemovedBefore", list: []string{packed(5 | removed), head(readyTag, 0, 9, 0, 9), op(5)},
			live: []int64{9}, kept: 2,
		},
		{
			name: "BelowFloor", list: []string{"", head(readyTag, 7, 7, 0), op(6), op(7), op(8), op(6 | removed)},
			floor: 7, bottom: 7, live: []int64{8, 7}, kept: 2,
		},
		{
			name: "Largest", list: []string{"", head(readyTag, 0, 0, 0, math.MaxInt64-2), op(math.MaxInt64 - 1)},
			live: []int64{math.MaxInt64 - 1, math.MaxInt64 - 2}, kept: 2,
		},
		{name: "Mark", list: []string{"", head(readyTag, 0, 0, 4)}, mark: 4},
		{name: "MarkMoves", list: []string{"", head(readyTag, 0, 0, 4), "S" + op(9), "S" + op(7)}, mark: 9},
		{name: "MarkNeverMovesDown", list: []string{"", head(readyTag, 0, 0, 4), "S" + op(3)}, mark: 4},

		{name: "Nil", bad: true},
		{name: "NilHead", partial: true, bad: true},
		{name: "NoHead", list: []string{""}, bad: true},
		{name: "EmptyHead", list: []string{"", ""}, bad: true},
		{name: "NoMagic", list: []string{"", head("\xfdLgenera", 0, 0, 0)}, bad: true},
		{name: "LaterVersion", list: []string{"", head("\xfcMgenera", 0, 0, 0)}, bad: true},
		{name: "FormerVersion", list: []string{"", head("\xfcRgenera", 0, 0, 0)}, bad: true},
		{name: "ShortHead", list: []string{"", head(readyTag, 0, 0, 0)[:48]}, bad: true},
		{name: "TornHead", list: []string{"", head(readyTag, 0, 0, 0, 5)[:60]}, bad: true},
		{name: "TornRest", list: []string{packed(5)[:7], head(readyTag, 0, 0, 0)}, bad: true},
		{name: "TornOp", list: []string{"", head(readyTag, 0, 0, 0), op(5)[:7]}, bad: true},
		{name: "LongOp", list: []string{"", head(readyTag, 0, 0, 0), "T" + op(5)}, bad: true},
		{name: "EmptyOp", list: []string{"", head(readyTag, 0, 0, 0), ""}, bad: true},
		{name: "NegativeFloor", list: []string{"", head(readyTag, removed, removed, 0)}, bad: true},
		{name: "HeadBelowTheFloor", list: []string{"", head(readyTag, 5, 4, 0)}, bad: true},
		{name: "NegativeMark", list: []string{"", head(readyTag, 0, 0, removed)}, bad: true},
		{name: "MarkOfTop", list: []string{"", head(readyTag, 0, 0, math.MaxInt64)}, bad: true},
		{name: "OpMarkOfTop", list: []string{"", head(readyTag, 0, 0, 0), "S" + op(math.MaxInt64)}, bad: true},
		{name: "NegativeOpMark", list: []string{"", head(readyTag, 0, 0, 0), "S" + op(removed)}, bad: true},
		{name: "ZeroID", list: []string{"", head(readyTag, 0, 0, 0), op(0)}, bad: true},
		{name: "ZeroInTheRest", list: []string{packed(0, 5), head(readyTag, 0, 9, 0)}, bad: true},
		{name: "ZeroRemoved", list: []string{"", head(readyTag, 0, 0, 0), op(removed)}, bad: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v, ok := feedcache.Parse(test.list, !test.partial)
			require.Equal(t, !test.bad, ok)
			if test.bad {
				return
			}
			live, more := v.Below(feedcache.Top, 100)
			require.False(t, more)
			require.True(t, slices.Equal(test.live, live), "%v", live)
			require.Equal(t, test.floor, v.Floor())
			require.Equal(t, test.bottom, v.Bottom())
			require.Equal(t, test.mark, v.Mark())
			require.Equal(t, test.kept, v.Len())
			require.Equal(t, test.deep, v.Deep())
			require.Equal(t, test.bottom == test.floor, v.Whole())
			require.Equal(t, server, v.Server())
			elements := len(test.list)
			if test.partial {
				elements++
			}
			require.Equal(t, elements, v.Elements(), "what a swap takes away")
		})
	}
}

// A lease replaces what is no feed, and names it by its first bytes.
func TestParseKeepsTheTagOfWhatIsNoFeed(t *testing.T) {
	t.Parallel()
	for _, element := range []string{"", "\xfcL", "\xfcLgen", readyTag, head("\xfcMgenera", 0, 0, 0), "hello, world"} {
		v, ok := feedcache.Parse([]string{element}, false)
		require.False(t, ok)
		require.Equal(t, element[:min(8, len(element))], v.Tag())
	}
	v, ok := feedcache.Parse([]string{"torn", head(readyTag, 0, 0, 0)}, true)
	require.False(t, ok)
	require.Equal(t, readyTag, v.Tag())
}

func TestBelow(t *testing.T) {
	t.Parallel()
	v, ok := feedcache.Parse([]string{packed(3, 4, 6), head(readyTag, 3, 8, 0, 8, 10), packed(8 | removed)}, true)
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
		{name: "AtTheFloor", before: 3, n: 3, ids: []int64{}},
		{name: "BelowTheFloor", before: 1, n: 3, ids: []int64{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ids, more := v.Below(test.before, test.n)
			require.Equal(t, test.ids, ids)
			require.Equal(t, test.more, more)
		})
	}
	last, _ := feedcache.Parse([]string{"", head(readyTag, 0, 0, 0, 8, 10), packed(8 | removed)}, true)
	ids, more := last.Below(feedcache.Top, 1)
	require.Equal(t, []int64{10}, ids)
	require.False(t, more, "a removed entry is not more")
}

func TestViewCountsTheUnseen(t *testing.T) {
	t.Parallel()
	for mark, want := range map[uint64]int{0: 4, 2: 4, 3: 3, 6: 1, 8: 1, 9: 1, 10: 0, math.MaxInt64 - 1: 0} {
		v, ok := feedcache.Parse([]string{packed(3, 4, 6), head(readyTag, 0, 8, mark, 8, 10), packed(8 | removed)}, true)
		require.True(t, ok)
		require.Equal(t, want, v.Unseen(), "mark %d", mark)
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	v, _ := feedcache.Parse([]string{"", head(readyTag, 2, 2, 0, 4, 6, 8, 10), packed(8 | removed)}, true)
	require.Equal(t, int64(2), v.Trim(4).Floor(), "nothing cut, so nothing less complete")
	for n, want := range map[int][]int64{3: {10, 6}, 2: {10}, 1: {10}} {
		trimmed := v.Trim(n)
		live, _ := trimmed.Below(feedcache.Top, 10)
		require.Equal(t, want, live)
		require.Equal(t, n, trimmed.Len(), "removed IDs count")
		require.Equal(t, trimmed.Floor(), trimmed.Bottom())
	}
	require.Equal(t, int64(8), v.Trim(2).Floor(), "the floor is at a removed entry, which stays")
	require.Equal(t, int64(10), v.Trim(1).Floor())
}

func TestFromSource(t *testing.T) {
	t.Parallel()
	require.Zero(t, feedcache.FromSource(nil, 3).Floor())
	require.Zero(t, feedcache.FromSource([]int64{9, 7}, 3).Floor())
	v := feedcache.FromSource([]int64{9, 7, 5}, 3)
	require.Equal(t, int64(5), v.Floor(), "there may be more of them")
	ids, more := v.Below(feedcache.Top, 3)
	require.Equal(t, []int64{9, 7, 5}, ids)
	require.False(t, more)
}

// The bytes are those that other processes read, before and after a deployment.
func TestFormat(t *testing.T) {
	t.Parallel()
	v := feedcache.FromSource([]int64{9, 7, 5}, 3).As(readyTag, server)
	deadline := func(s string) string { return strings.Replace(s, server+packed(7), server+packed(0), 1) }
	require.Equal(t, []string{packed(5), deadline(head(readyTag, 5, 7, 0, 7, 9))}, v.Encode(2))
	require.Equal(t, []string{"", deadline(head(readyTag, 5, 5, 0, 5, 7, 9))}, v.Encode(3))
	v, ok := feedcache.Parse([]string{packed(5, 7|removed), head(readyTag, 5, 9, 3, 9)}, true)
	require.True(t, ok)
	require.Equal(t, []string{packed(5), head(readyTag, 5, 7, 3, 7|removed, 9)}, v.Encode(2))
	require.Len(t, head(readyTag, 0, 0, 0), 56)

	tag := feedcache.NewTag(feedcache.Ready)
	require.Len(t, tag, 8)
	require.Equal(t, "\xfcL", tag[:2])
	require.Equal(t, "\xfcB", feedcache.NewTag(feedcache.Building)[:2])
	require.NotEqual(t, tag, feedcache.NewTag(feedcache.Ready))
}

// same compares what two views know, not how they were read.
func same(t require.TestingT, a, b feedcache.View) {
	require.Equal(t, a.Tag(), b.Tag())
	require.Equal(t, a.Server(), b.Server())
	require.Equal(t, a.Floor(), b.Floor())
	require.Equal(t, a.Bottom(), b.Bottom())
	require.Equal(t, a.Mark(), b.Mark())
	require.Equal(t, a.Len(), b.Len())
	x, _ := a.Below(feedcache.Top, a.Len()+1)
	y, _ := b.Below(feedcache.Top, b.Len()+1)
	require.Equal(t, x, y)
}

// A feed that is written anew, in whole or its head alone, is the same feed,
// and a reader of the head sees the newest part of it.
func TestRewritingKeepsAFeed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.Custom(func(t *rapid.T) uint64 {
			base := rapid.SampledFrom([]uint64{1, 1 << 30, math.MaxInt64 - 40}).Draw(t, "base")
			return base + rapid.Uint64Range(0, 39).Draw(t, "id")
		})
		ids := rapid.SliceOfNDistinct(id, 0, 60, rapid.ID).Draw(t, "ids")
		slices.Sort(ids)
		descending := make([]int64, len(ids))
		for i, id := range ids {
			descending[len(ids)-1-i] = int64(id)
		}
		n := max(1, len(ids)+rapid.IntRange(0, 1).Draw(t, "more"))
		list := feedcache.FromSource(descending, n).As(readyTag, server).Encode(rapid.IntRange(1, 20).Draw(t, "head"))
		for range rapid.IntRange(0, 40).Draw(t, "ops") {
			op := packed(id.Draw(t, "op") | rapid.SampledFrom([]uint64{0, removed}).Draw(t, "mark"))
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				op = "S" + packed(id.Draw(t, "seen"))
			}
			list = append(list, op)
		}
		whole, ok := feedcache.Parse(list, true)
		require.True(t, ok)
		part, ok := feedcache.Parse(list[1:], false)
		require.True(t, ok)
		require.Equal(t, whole.Elements(), part.Elements())

		newest, _ := part.Below(feedcache.Top, part.Len())
		all, _ := whole.Below(feedcache.Top, whole.Len())
		require.Equal(t, newest, all[:len(newest)])
		if len(newest) < len(all) {
			require.Less(t, all[len(newest)], part.Bottom())
		}

		rewritten, ok := feedcache.Parse(whole.Encode(rapid.IntRange(1, 80).Draw(t, "new head")), true)
		require.True(t, ok)
		same(t, whole, rewritten)
		if part.Deep() || part.Whole() {
			return // such a head is not written alone
		}
		folded, ok := feedcache.Parse([]string{list[0], part.Encode(1)[1]}, true)
		require.True(t, ok)
		same(t, whole, folded)
	})
}

// elements splits bytes into a list: each element after its length.
func elements(b []byte) (list []string) {
	for len(b) > 0 {
		n := min(int(b[0]), len(b)-1)
		list, b = append(list, string(b[1:1+n])), b[1+n:]
	}
	return list
}

func lengths(list ...string) (b []byte) {
	for _, e := range list {
		b = append(append(b, byte(len(e))), e...)
	}
	return b
}

func FuzzParse(f *testing.F) {
	for _, whole := range []bool{true, false} {
		f.Add(lengths(packed(5), head(readyTag, 0, 9, 0, 9), packed(7), packed(9|removed), "S"+packed(7)), whole)
		f.Add(lengths(head(readyTag, 3, 9, 4, 9), packed(7), packed(10|removed), packed(2)), whole)
		f.Add(lengths("", head(buildingTag, 7, 7, 0), packed(5), packed(9), packed(9)), whole)
		f.Add(lengths("", head(readyTag, math.MaxInt64, math.MaxInt64, math.MaxInt64), packed(math.MaxUint64)), whole)
		f.Add(lengths("", head(readyTag, removed, 0, 0)), whole)
		f.Add(lengths("hello", "\xfcL", "S"), whole)
		f.Add([]byte{}, whole)
	}
	f.Fuzz(func(t *testing.T, data []byte, whole bool) {
		list := elements(data)
		v, ok := feedcache.Parse(slices.Clone(list), whole)
		if !ok {
			return
		}
		// The oracle: two sets.
		ops := ""
		if whole {
			ops, list = list[0], list[1:]
		}
		ops += list[0][56:]
		for _, op := range list[1:] {
			if len(op) == 8 {
				ops += op
			}
		}
		adds, removals := map[int64]bool{}, map[int64]bool{}
		for op := range slices.Chunk([]byte(ops), 8) {
			n := binary.BigEndian.Uint64(op)
			if id := int64(n &^ removed); id >= v.Bottom() {
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
		live, more := v.Below(feedcache.Top, len(want)+1)
		require.True(t, slices.Equal(want, live), "want %v, have %v", want, live)
		require.False(t, more)
		require.Equal(t, len(adds), v.Len())
		unseen := 0
		for _, id := range live {
			if id > v.Mark() {
				unseen++
			}
		}
		require.Equal(t, unseen, v.Unseen())

		for n := 1; n <= v.Len()+1; n += 1 + n/2 {
			list := v.Encode(n)
			if !v.Whole() {
				list = list[1:]
			}
			again, ok := feedcache.Parse(list, v.Whole())
			require.True(t, ok)
			same(t, v, again)
			require.False(t, again.Deep())
			if n > v.Len() {
				continue
			}
			trimmed := v.Trim(n)
			require.Equal(t, n, trimmed.Len())
			kept, _ := trimmed.Below(feedcache.Top, n)
			require.True(t, slices.Equal(live[:len(kept)], kept))
			if len(kept) < len(live) {
				require.Less(t, live[len(kept)], trimmed.Floor(), "what is cut is below the floor")
			}
		}
	})
}
