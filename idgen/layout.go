package idgen

import (
	"fmt"
	"time"
)

// A Layout says how the 64 bits of an ID are divided. Time takes the upper
// bits, with the sign bit, then the shard, then the sequence. A program that
// has stored an ID must keep its layout for ever.
type Layout struct {
	// TimeBits, ShardBits and SequenceBits add up to 64. TimeBits counts the
	// sign bit, which stays 0. The bits of the sequence are 6 to 22.
	TimeBits, ShardBits, SequenceBits int

	// Epoch is the moment of ID 0, in whole milliseconds.
	Epoch time.Time
}

var (
	// Default is 41 bits of time, 13 of shard and 10 of sequence, counted from
	// the start of 2026. It runs out on 3 November 2060.
	Default = Layout{TimeBits: 41, ShardBits: 13, SequenceBits: 10, Epoch: time.UnixMilli(1767225600000).UTC()}

	// Instagram is the layout with the epoch that Instagram published in 2011,
	// for programs that keep such IDs. It runs out on 27 June 2046.
	Instagram = Layout{TimeBits: 41, ShardBits: 13, SequenceBits: 10, Epoch: time.UnixMilli(1314220021721).UTC()}
)

// Validate reports what is wrong with a layout, or nil.
func (l Layout) Validate() error {
	switch {
	case l.TimeBits < 32 || l.ShardBits < 0 || l.SequenceBits < 6 || l.SequenceBits > 22:
		return fmt.Errorf("idgen: layout of %d/%d/%d bits: want at least 32 for time, 0 for shard and 6 to 22 for sequence",
			l.TimeBits, l.ShardBits, l.SequenceBits)
	case l.TimeBits+l.ShardBits+l.SequenceBits != 64:
		return fmt.Errorf("idgen: layout of %d/%d/%d bits: they add up to %d, want 64",
			l.TimeBits, l.ShardBits, l.SequenceBits, l.TimeBits+l.ShardBits+l.SequenceBits)
	case l.Epoch.IsZero() || l.Epoch.Nanosecond()%int(time.Millisecond) != 0:
		return fmt.Errorf("idgen: layout epoch %v: want a moment in whole milliseconds", l.Epoch)
	}
	return nil
}

// String returns the layout as in "41/13/10 since 2026-01-01T00:00:00Z".
func (l Layout) String() string {
	return fmt.Sprintf("%d/%d/%d since %s", l.TimeBits, l.ShardBits, l.SequenceBits, l.Epoch.UTC().Format(time.RFC3339Nano))
}

// Compose returns the ID of a moment, rounded down to the millisecond, a shard
// and a sequence number. It fails when one of them has no room in the layout.
// Nothing says that the ID is free: to make new IDs is a [Generator]'s work.
func (l Layout) Compose(t time.Time, shard, sequence int) (ID, error) {
	ms := t.UnixMilli() - l.Epoch.UnixMilli()
	switch {
	case ms < 0 || ms >= l.span():
		return 0, l.runOut(t)
	case shard < 0 || shard > l.MaxShard():
		return 0, fmt.Errorf("idgen: shard %d: want 0 to %d", shard, l.MaxShard())
	case sequence < 0 || sequence > l.maxSequence():
		return 0, fmt.Errorf("idgen: sequence %d: want 0 to %d", sequence, l.maxSequence())
	}
	return ID(ms<<(l.ShardBits+l.SequenceBits) | int64(shard)<<l.SequenceBits | int64(sequence)), nil
}

// First returns the smallest ID that any shard can make in the millisecond of t.
// It turns a range of time into one of the primary key:
//
//	where id >= $1 and id < $2 -- layout.First(from), layout.First(to)
//
// A moment before the epoch gives 0, one after the end of the layout [MaxID].
func (l Layout) First(t time.Time) ID {
	switch ms := t.UnixMilli() - l.Epoch.UnixMilli(); {
	case ms < 0:
		return 0
	case ms >= l.span():
		return MaxID
	default:
		return ID(ms << (l.ShardBits + l.SequenceBits))
	}
}

// Last returns the largest ID that any shard can make in the millisecond of t.
// A moment before the epoch gives 0, one after the end of the layout [MaxID].
func (l Layout) Last(t time.Time) ID {
	if t.Before(l.Epoch) {
		return 0
	}
	return l.First(t) | (1<<(l.ShardBits+l.SequenceBits) - 1)
}

// Time returns the moment in which an ID was made, to the millisecond.
func (l Layout) Time(id ID) time.Time {
	return time.UnixMilli(l.Epoch.UnixMilli() + l.ms(id)).UTC()
}

// Shard returns the shard that made an ID.
func (l Layout) Shard(id ID) int {
	return int(uint64(id) >> l.SequenceBits & (1<<l.ShardBits - 1))
}

// Sequence returns what tells an ID from the others of its millisecond and
// shard. It increases within a millisecond, but need not begin at 0.
func (l Layout) Sequence(id ID) int {
	return int(id & (1<<l.SequenceBits - 1))
}

// MaxShard returns the largest shard number of the layout.
func (l Layout) MaxShard() int { return 1<<l.ShardBits - 1 }

// RunsOut returns the first moment that has no ID any more: the ID would be
// negative as a bigint, and sort before all others.
func (l Layout) RunsOut() time.Time {
	return time.UnixMilli(l.Epoch.UnixMilli() + l.span()).UTC()
}

func (l Layout) maxSequence() int { return 1<<l.SequenceBits - 1 }

// span is the number of milliseconds in the layout's life.
func (l Layout) span() int64 { return 1 << (l.TimeBits - 1) }

func (l Layout) ms(id ID) int64 { return int64(id) >> (l.ShardBits + l.SequenceBits) }

func (l Layout) runOut(t time.Time) error {
	return fmt.Errorf("%w: %s, want %s to %s", ErrRunOut,
		t.UTC().Format(time.RFC3339), l.Epoch.UTC().Format(time.RFC3339), l.RunsOut().Format(time.RFC3339))
}
