package feedcache

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// The parts of a feed's value; the package doc has the picture. The states are
// those of this version: a later one takes other letters.
const (
	magic          = 0xFC
	building  byte = 'B'
	ready     byte = 'R'
	tagLen         = 8 // magic, state, generation: what a swap compares
	headerLen      = 16
	opLen          = 8
	removal        = 1 << 63
)

// An entry is an ID and what became of it: the ID shifted left, plus one if it
// was removed. So entries sort by ID, and a removal sorts after its add.
type entry uint64

func (e entry) id() int64     { return int64(e >> 1) }
func (e entry) removed() bool { return e&1 == 1 }

// An opLog is a feed's value, decoded.
type opLog struct {
	tag     string  // magic, state and generation
	floor   int64   // oldest ID the log is complete down to; 0: complete
	entries []entry // one for each ID, oldest first, none below the floor
}

// newTag returns the start of a header with a generation nobody else has: 48
// random bits, compared only among the values one key had while one swap was
// under way.
func newTag(state byte) string {
	n := rand.Uint64()>>16 | uint64(state)<<48 | magic<<56
	return string(binary.BigEndian.AppendUint64(nil, n))
}

// parse decodes a value. It reports false if the value is not a feed of this
// version, whatever else it may be.
func parse(value []byte) (opLog, bool) {
	if len(value) < headerLen || len(value)%opLen != 0 || value[0] != magic {
		return opLog{}, false
	}
	l := opLog{tag: string(value[:tagLen])}
	if s := l.state(); s != building && s != ready {
		return opLog{}, false
	}
	if l.floor = int64(binary.BigEndian.Uint64(value[tagLen:])); l.floor < 0 {
		return opLog{}, false
	}
	l.entries = make([]entry, 0, len(value)/opLen)
	for op := range slices.Chunk(value[headerLen:], opLen) {
		n := binary.BigEndian.Uint64(op)
		e := entry(n<<1 | n>>63)
		if e.id() == 0 {
			return opLog{}, false
		}
		if e.id() >= l.floor {
			l.entries = append(l.entries, e)
		}
	}
	// Compacted logs are sorted and later ops nearly so, which is fast to sort.
	slices.Sort(l.entries)
	l.entries = lastPerID(l.entries)
	return l, true
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

// fromSource returns the log of the newest IDs of a Source that was asked for
// n of them.
func fromSource(ids []int64, n int) opLog {
	var l opLog
	for _, id := range slices.Backward(ids) {
		l.entries = append(l.entries, entry(id)<<1)
	}
	if len(ids) == n {
		l.floor = ids[n-1]
	}
	return l
}

func (l opLog) state() byte { return l.tag[1] }

// below returns at most n IDs below before that were not removed, newest
// first, and whether the log has more of them.
func (l opLog) below(before int64, n int) (ids []int64, more bool) {
	end, _ := slices.BinarySearch(l.entries, entry(before)<<1)
	for _, e := range slices.Backward(l.entries[:end]) {
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

// trim keeps the entries of the newest n IDs. Removed IDs count: otherwise
// their entries, which must stay for as long as a late add could show, would
// pile up in a feed whose floor is 0.
func (l opLog) trim(n int) opLog {
	if cut := len(l.entries) - n; cut > 0 {
		l.entries = l.entries[cut:]
		l.floor = l.entries[0].id()
	}
	return l
}

// encode returns the value of the log under another tag.
func (l opLog) encode(tag string) []byte {
	b := make([]byte, 0, headerLen+opLen*len(l.entries))
	b = append(b, tag...)
	b = binary.BigEndian.AppendUint64(b, uint64(l.floor))
	for _, e := range l.entries {
		b = binary.BigEndian.AppendUint64(b, uint64(e)>>1|uint64(e)<<63)
	}
	return b
}

// encodeOps returns ops for the IDs, each with the mark: 0 or removal.
func encodeOps(ids []int64, mark uint64) []byte {
	b := make([]byte, 0, opLen*len(ids))
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, uint64(id)|mark)
	}
	return b
}
