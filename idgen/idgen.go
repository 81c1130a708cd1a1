// Package idgen makes 64-bit IDs that sort by time and never repeat.
//
// Tables that are split over many databases cannot share one sequence, and a
// random UUID is twice as large and sorts by nothing. An ID of this package
// carries the moment it was made and the shard that made it, so it orders a
// feed without a created_at index and finds its row without a look-up.
//
//	 63 62                                        23 22           10 9          0
//	┌──┬────────────────────────────────────────────┬───────────────┬────────────┐
//	│ 0│      milliseconds since the epoch (41)     │  shard (13)   │ sequence   │
//	│  │                                            │   0…8191      │   (10)     │
//	└──┴────────────────────────────────────────────┴───────────────┴────────────┘
//
// The field of 41 bits includes the sign bit of a PostgreSQL bigint, so 40 of
// them can be used: a layout lasts 2^40 milliseconds, 34.8 years, from its
// epoch. [Layout.RunsOut] tells the date, which is 3 November 2060 for
// [Default]. From then on generators refuse, in Go with [ErrRunOut], in PostgreSQL
// with numeric_value_out_of_range; none ever makes a negative ID. A layout with
// more bits for the time lasts longer: choose it before the first row.
//
// # Which generator
//
//   - [SQL] installs next_id() in a PostgreSQL schema, one for each shard. Any
//     number of processes may insert, and the default of a column can call it.
//     Take this one for rows, whenever several processes write to one shard.
//   - [New] makes a [Generator] for a shard that belongs to this one process,
//     such as an importer. It asks nobody.
//   - [Open] makes one whose shard number or newest ID must outlive the process:
//     a high-water mark is stored ahead of use, in a file, PostgreSQL or Redis.
//     The number can be a leased one, for programs that use the shard field as
//     a worker number and do not care which they get.
//   - [NewSet] joins generators, to make more than one shard's share of IDs.
//
// # Guarantees
//
// A [Generator] returns strictly increasing IDs under any clock, and two
// generators of different shards never return the same ID. A shard has 1,024 IDs
// for each millisecond of its clock; what happens beyond is [Config.Overflow],
// by default a wait for the next millisecond. So no ID is ahead of the clock,
// unless the clock stepped back, the program borrows or it was killed and began
// above its mark. An ID that had to wait may be up to 16 ms behind the clock, as
// milliseconds missed by a late timer are used up first; or as old as the wait for
// the store of [Open] was long. IDs modulo 2, 4 … 64 are evenly spread, also at
// low rates.
//
// With [Open], the first ID is above every ID that an earlier process has made of
// that shard, also after a crash or with a clock that was set back. A
// process that has lost its number to another one, and wakes up an hour later,
// returns nothing that the other may return: safety rests on the stored mark and
// its compare-and-swap, never on a clock or a timeout.
//
// # Non-guarantees
//
// Two generators made by [New] for one shard repeat IDs when they run at the same
// time, and may when the second one starts while the clock is behind: it begins
// at the clock, or above [Config.After]. A virtual machine that is cloned with a
// process running in it repeats what [Open] had reserved, at most
// [Config.Window]; then the one that is second to extend the mark stops. A
// program that opens [AnyShard] again may get another number, whose IDs are above
// its former ones only as far as the clock is. IDs of
// different shards are ordered only as well as the clocks of their machines
// agree. An ID is no secret: it tells its time and shard.
//
// # Cost
//
// [Generator.Next] is one read of the clock and one atomic addition: no lock, no
// allocation. [Generator.Fill] shares both among up to 1,024 IDs. A generator that
// waits sleeps. Open costs two round trips to its store, and then one in the
// background for every third of [Config.Window].
//
// # Failure
//
// New and Open do not look at the clock; a clock before the epoch makes Next fail
// with [ErrRunOut] until it is right, one far behind with [ErrClockBack]. Next of
// a generator of Open waits for the store when the mark is reached, as long as its
// ctx lets it: give it a deadline. It goes on without the store for two thirds of
// the window or more, then returns the store's errors, and goes on when the store
// is back. After [ErrLeaseLost] open another generator and put it in the place of
// the old one. Open adds one goroutine: close the generator after the last Next,
// also one that is in a [Set].
//
// The layout is that of Instagram's IDs: "Sharding & IDs at Instagram",
// Instagram Engineering, 2011.
package idgen

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrClockBack is returned while the clock is behind the last ID by more
	// than [Config.MaxBack]. A retry is safe, and succeeds when the clock has
	// caught up.
	ErrClockBack = errors.New("idgen: the clock stepped back")

	// ErrRunOut is returned when the time does not fit the layout: from the
	// date of [Layout.RunsOut] on, or before the layout's epoch.
	ErrRunOut = errors.New("idgen: the layout has no ID for this time")

	// ErrFull is returned when there is no ID without waiting: by TryNext, and
	// by all methods under [Refuse]. A retry is safe, and succeeds a
	// millisecond later, or when the background has stored a mark.
	ErrFull = errors.New("idgen: the IDs of this millisecond are used up")

	// ErrLeaseLost is returned once it is known that somebody else has claimed
	// the shard number, or that its mark is gone. It is final: no retry
	// succeeds; [Open] another.
	ErrLeaseLost = errors.New("idgen: the shard number was lost")

	// ErrHeld is returned by [Open] when the shard number is held, in this
	// process or another, or all are for [AnyShard]. A retry succeeds when a
	// holder has ended. Of a number asked for by name only [FileLeases] returns
	// it; the other stores take the number from its holder.
	ErrHeld = errors.New("idgen: the shard number is held")

	// ErrClosed is returned after Close, unless ErrLeaseLost was before.
	ErrClosed = errors.New("idgen: the generator is closed")
)

// Overflow says what a generator does when the IDs of a millisecond are used up.
type Overflow int

const (
	// Wait sleeps until the next millisecond.
	Wait Overflow = iota
	// Borrow takes the IDs of milliseconds to come, up to Config.MaxAhead, and
	// then waits.
	Borrow
	// Refuse returns ErrFull.
	Refuse
)

// Config is what New and Open take beside the shard. The zero value works.
type Config struct {
	// Layout is the division of the 64 bits. Default: [Default].
	Layout Layout

	// After is an ID of the shard that every new ID must be above: the largest
	// one stored. Far ahead of the clock it is like a step back. Default: 0,
	// none.
	After ID

	// Overflow is what happens when the IDs of a millisecond are used up.
	// Default: Wait.
	Overflow Overflow

	// MaxAhead is how far Borrow may run ahead of the clock, a number of
	// milliseconds. Default: 1 s with Borrow; else it must be 0.
	MaxAhead time.Duration

	// MaxBack is how far the clock may step back before the generator refuses
	// with ErrClockBack; until then it counts on above the last ID, at most
	// 1,024 for each millisecond. No call sleeps for the length of a step. Open
	// adds Window, as IDs may begin so far ahead. Default: 1 s; at least 1 ms.
	MaxBack time.Duration

	// Window is how far ahead of use Open stores the mark. After a crash IDs
	// begin up to this much ahead of the clock. A store that is away for up to
	// two thirds of it is not noticed. Default: 3 s; at least 100 ms. Only Open
	// reads it.
	Window time.Duration

	// Now is the clock. One that stands still makes Next wait for ever when the
	// IDs of its millisecond are used up. Default: time.Now.
	Now func() time.Time
}

// withDefaults checks the fields that concern a generator of any kind.
func (c Config) withDefaults() (Config, error) {
	if c.Layout == (Layout{}) {
		c.Layout = Default
	}
	if err := c.Layout.Validate(); err != nil {
		return c, err
	}
	// Layouts are compared, so of equal epochs there must be one form.
	c.Layout.Epoch = time.UnixMilli(c.Layout.Epoch.UnixMilli()).UTC()
	if c.Overflow < Wait || c.Overflow > Refuse {
		return c, fmt.Errorf("idgen: Config.Overflow is %d: want Wait, Borrow or Refuse", c.Overflow)
	}
	if c.MaxAhead < 0 || c.MaxAhead%time.Millisecond != 0 {
		return c, fmt.Errorf("idgen: Config.MaxAhead is %v: want a number of milliseconds", c.MaxAhead)
	}
	if c.MaxAhead > 0 && c.Overflow != Borrow {
		return c, fmt.Errorf("idgen: Config.MaxAhead is %v: want 0 without Borrow", c.MaxAhead)
	}
	if c.MaxAhead == 0 && c.Overflow == Borrow {
		c.MaxAhead = time.Second
	}
	if c.MaxBack < 0 || c.MaxBack > 0 && c.MaxBack < time.Millisecond {
		return c, fmt.Errorf("idgen: Config.MaxBack is %v: want 1ms or more", c.MaxBack)
	}
	if c.MaxBack == 0 {
		c.MaxBack = time.Second
	}
	if c.Window < 0 || c.Window > 0 && c.Window < 100*time.Millisecond {
		return c, fmt.Errorf("idgen: Config.Window is %v: want 100ms or more", c.Window)
	}
	if c.Window == 0 {
		c.Window = 3 * time.Second
	}
	return c, nil
}

// New returns a generator for a shard that belongs to this process. It fails
// when the layout is not valid, has no such shard, or when cfg.After is of
// another one. It starts nothing and needs no Close.
func New(shard int, cfg Config) (*Generator, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return newGenerator(shard, cfg)
}
