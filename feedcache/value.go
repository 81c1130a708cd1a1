package feedcache

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// The parts of a feed's list; the package doc has the picture. The states are
// those of this version: a later one takes other letters.
const (
	magic          = 0xFC
	building  byte = 'B'
	ready     byte = 'L'
	tagLen         = 8 // magic, state, generation: what a swap compares
	headerLen      = 56
	serverLen      = 16
	opLen          = 8
	removal        = 1 << 63
	seenOp         = 'S' // before an ID: the owner has read up to it
)

// An entry is an ID and what became of it: the ID shifted left, plus one if it
// was removed. So entries sort by ID, and a removal sorts after its add.
type entry uint64

func (e entry) id() int64     { return int64(e >> 1) }
func (e entry) removed() bool { return e&1 == 1 }
func (e entry) op() uint64    { return uint64(e)>>1 | uint64(e)<<63 }

func toEntry(op uint64) entry { return entry(op<<1 | op>>63) }

// A header is what a feed says of itself.
type header struct {
	tag       string // magic, state and generation
	floor     int64  // oldest ID the feed is complete down to; 0: complete
	headFloor int64  // the same of the head and the ops alone
	server    string // incarnation of the server that has held it since its fill
	deadline  int64  // when the TTL ends, in Unix milliseconds
	seen      int64  // the owner has read up to here
}

// newTag returns the start of a header with a generation nobody else has: 48
// random bits, compared only among the values one key had while one swap was
// under way.
func newTag(state byte) string {
	n := rand.Uint64()>>16 | uint64(state)<<48 | magic<<56
	return string(binary.BigEndian.AppendUint64(nil, n))
}

func (h header) state() byte { return h.tag[1] }

// encode returns the header's bytes before and after the server.
func (h header) encode() (before, after []byte) {
	before = append(before, h.tag...)
	before = binary.BigEndian.AppendUint64(before, uint64(h.floor))
	before = binary.BigEndian.AppendUint64(before, uint64(h.headFloor))
	after = binary.BigEndian.AppendUint64(after, uint64(h.deadline))
	after = binary.BigEndian.AppendUint64(after, uint64(h.seen))
	return before, after
}

func decodeHeader(head string) (h header, ok bool) {
	if len(head) < headerLen || len(head)%opLen != 0 || head[0] != magic {
		return h, false
	}
	h = header{
		tag: head[:tagLen], floor: number(head[8:]), headFloor: number(head[16:]),
		server: head[24:40], deadline: number(head[40:]), seen: number(head[48:]),
	}
	if s := h.state(); s != building && s != ready {
		return h, false
	}
	return h, 0 <= h.floor && h.floor <= h.headFloor && 0 <= h.seen && h.seen < top
}

// A view is what a reader knows of a feed: all of it, or its newest part.
type view struct {
	header
	bottom  int64   // oldest ID the view is complete down to; 0: complete
	entries []entry // one for each ID, oldest first, none below the bottom
	whole   bool    // the older IDs are in it, if there are any
	deep    bool    // not whole, and an op is about an older ID
	seenLen int     // elements of the list, as far as the reader knows it
}

// nothing is the view of a reader who has no feed to look at.
var nothing = view{bottom: top}

// parse decodes the elements of a list, from index 0 if whole and from index 1
// otherwise. It reports false if they are not a feed of this version.
func parse(list []string, whole bool) (view, bool) {
	rest, index := "", 1
	if whole && len(list) > 0 {
		rest, list, index = list[0], list[1:], 2
	}
	if len(list) == 0 {
		return view{}, false
	}
	h, ok := decodeHeader(list[0])
	if !ok || len(rest)%opLen != 0 {
		// The tag is what a lease replaces.
		return view{header: header{tag: list[0][:min(tagLen, len(list[0]))]}}, false
	}
	v := view{header: h, bottom: h.floor, whole: true, seenLen: len(list) - 1 + 2}
	if index == 1 && h.headFloor != h.floor {
		v.bottom, v.whole = h.headFloor, false
	}
	packed := list[0][headerLen:]
	v.entries = make([]entry, 0, len(rest)/opLen+len(packed)/opLen+len(list)-1)
	for _, part := range []string{rest, packed} {
		for ; part != ""; part = part[opLen:] {
			if !v.add(part) {
				return v, false
			}
		}
	}
	for _, op := range list[1:] {
		switch {
		case len(op) == opLen:
			if !v.add(op) {
				return v, false
			}
		case len(op) == 1+opLen && op[0] == seenOp && valid(number(op[1:])):
			v.seen = max(v.seen, number(op[1:]))
		default:
			return v, false
		}
	}
	// The packed IDs are sorted and the ops nearly so, which is fast to sort.
	slices.Sort(v.entries)
	v.entries = lastPerID(v.entries)
	return v, true
}

// add takes one op into the view and reports whether it is one.
func (v *view) add(op string) bool {
	e := toEntry(uint64(number(op)))
	switch {
	case !valid(e.id()):
		return false
	case e.id() >= v.bottom:
		v.entries = append(v.entries, e)
	case e.id() >= v.floor:
		v.deep = true
	}
	return true
}

// lastPerID keeps the last entry of each ID: its removal if there is one.
func lastPerID(sorted []entry) []entry {
	kept := sorted[:0]
	for i, e := range sorted {
		if i+1 == len(sorted) || sorted[i+1].id() != e.id() {
			kept = append(kept, e)
		}
	}
	return kept
}

// fromSource returns the view of the newest IDs of a Source that was asked for
// n of them.
func fromSource(ids []int64, n int) view {
	v := view{whole: true, entries: make([]entry, 0, len(ids))}
	for _, id := range slices.Backward(ids) {
		v.entries = append(v.entries, entry(id)<<1)
	}
	if len(ids) == n {
		v.floor, v.bottom = ids[n-1], ids[n-1]
	}
	return v
}

// below returns at most n IDs below before that were not removed, newest
// first, and whether the view has more of them.
func (v view) below(before int64, n int) (ids []int64, more bool) {
	end, _ := slices.BinarySearch(v.entries, entry(before)<<1)
	ids = make([]int64, 0, min(n, end))
	for _, e := range slices.Backward(v.entries[:end]) {
		if e.removed() {
			continue
		}
		if len(ids) == n {
			return ids, true
		}
		ids = append(ids, e.id())
	}
	return ids, false
}

// unseen counts the IDs above the mark.
func (v view) unseen() (n int) {
	begin, _ := slices.BinarySearch(v.entries, entry(v.seen)<<1+2)
	for _, e := range v.entries[begin:] {
		if !e.removed() {
			n++
		}
	}
	return n
}

// trim keeps the entries of the newest n IDs. Removed IDs count: otherwise
// their entries, which must stay for as long as a late add could show, would
// pile up in a feed whose floor is 0.
func (v view) trim(n int) view {
	if cut := len(v.entries) - n; cut > 0 {
		v.entries = v.entries[cut:]
		v.floor, v.bottom = v.entries[0].id(), v.entries[0].id()
	}
	return v
}

// encode returns the first two elements of the list: the older IDs, and the
// header with the newest n. Of a view that is not whole it returns the second
// one alone, with all IDs.
func (v view) encode(n int) (rest, head []byte) {
	cut := 0
	if v.whole {
		cut = max(0, len(v.entries)-n)
		rest = pack(make([]byte, 0, cut*opLen), v.entries[:cut])
		if v.headFloor = v.floor; cut > 0 {
			v.headFloor = v.entries[cut].id()
		}
	}
	before, after := v.header.encode()
	head = make([]byte, 0, headerLen+opLen*(len(v.entries)-cut))
	head = append(head, before...)
	head = append(head, v.server...)
	head = append(head, after...)
	return rest, pack(head, v.entries[cut:])
}

func pack(b []byte, entries []entry) []byte {
	for _, e := range entries {
		b = binary.BigEndian.AppendUint64(b, e.op())
	}
	return b
}

// encodeOps returns one op for each ID, with the mark: 0 or removal.
func encodeOps(ids []int64, mark uint64) []any {
	ops := make([]any, len(ids))
	for i, id := range ids {
		ops[i] = string(binary.BigEndian.AppendUint64(nil, uint64(id)|mark))
	}
	return ops
}

// number reads the first eight bytes of s.
func number(s string) int64 {
	_ = s[7]
	return int64(s[0])<<56 | int64(s[1])<<48 | int64(s[2])<<40 | int64(s[3])<<32 |
		int64(s[4])<<24 | int64(s[5])<<16 | int64(s[6])<<8 | int64(s[7])
}
