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
// epoch. [Layout.RunsOut] tells the date, and a [Generator] refuses with
// [ErrRunOut] from then on; it never makes a negative ID.
//
// # Guarantees
//
// A [Generator] returns strictly increasing IDs, also when the clock steps
// back while it runs. Two generators of different shards never return the same
// ID. A generator makes at most 1,024 IDs per millisecond of its clock; beyond
// that [Generator.Next] waits for the next millisecond. So no ID is ahead of the
// clock, unless the clock stepped back.
//
// # Non-guarantees
//
// Two generators of one shard that run at the same time repeat IDs: a shard
// belongs to one generator. After a restart a generator starts at the clock:
// give [Config.After] the last ID known, so that a clock that was set back
// meanwhile repeats nothing. IDs of different shards are ordered only as well
// as the clocks of their machines agree.
//
// # Cost
//
// Next is one read of the clock and one compare-and-swap: no lock, no
// allocation, no goroutine.
//
// The layout is that of Instagram's IDs: "Sharding & IDs at Instagram",
// Instagram Engineering, 2011.
package idgen

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

var (
	// ErrClockBack is returned by [Generator.Next] while the clock is behind
	// the last ID by more than [Config.MaxBack]. A retry is safe, and succeeds
	// when the clock has caught up.
	ErrClockBack = errors.New("idgen: the clock stepped back")

	// ErrRunOut is returned when the time does not fit the layout: from the
	// date of [Layout.RunsOut] on, or before the layout's epoch.
	ErrRunOut = errors.New("idgen: the layout has no ID for this time")
)

// Config is what New takes beside the shard. The zero value works.
type Config struct {
	// Layout is the division of the 64 bits. Default: [Default].
	Layout Layout

	// After is an ID that every new ID must be above: the largest one that
	// the shard has stored. Default: 0, none.
	After ID

	// MaxBack is how far the clock may step back before Next refuses; until
	// then it counts on above the last ID. Default: 1 s.
	MaxBack time.Duration

	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// stagger masks how much of the sequence goes on into the next millisecond.
const stagger = 1<<6 - 1

// A Generator makes the IDs of one shard. It is safe for concurrent use. Make
// it with New.
type Generator struct {
	layout  Layout
	shard   int64
	maxBack int64 // milliseconds
	now     func() time.Time

	// last is milliseconds << SequenceBits | sequence of the newest ID. Time
	// and sequence are one word so that they cannot be read apart.
	last atomic.Int64
}

// New returns a generator for a shard. It fails when the layout is not valid,
// has no such shard, or did not make cfg.After. It starts nothing and needs no
// Close.
func New(shard int, cfg Config) (*Generator, error) {
	if cfg.Layout == (Layout{}) {
		cfg.Layout = Default
	}
	if err := cfg.Layout.Validate(); err != nil {
		return nil, err
	}
	if shard < 0 || shard > cfg.Layout.MaxShard() {
		return nil, fmt.Errorf("idgen: shard %d: want 0 to %d", shard, cfg.Layout.MaxShard())
	}
	if cfg.After < 0 {
		return nil, fmt.Errorf("idgen: Config.After is %d: want an ID or 0", cfg.After)
	}
	if cfg.After != 0 && cfg.Layout.Shard(cfg.After) != shard {
		return nil, fmt.Errorf("idgen: Config.After is of shard %d: want one of shard %d", cfg.Layout.Shard(cfg.After), shard)
	}
	if cfg.MaxBack < 0 {
		return nil, fmt.Errorf("idgen: Config.MaxBack is %v: want 0 or more", cfg.MaxBack)
	}
	if cfg.MaxBack == 0 {
		cfg.MaxBack = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	g := &Generator{
		layout:  cfg.Layout,
		shard:   int64(shard),
		maxBack: cfg.MaxBack.Milliseconds(),
		now:     cfg.Now,
	}
	// Without After the state is that of ID 0, which is no ID.
	if cfg.After != 0 {
		g.last.Store(cfg.Layout.ms(cfg.After)<<cfg.Layout.SequenceBits | int64(cfg.Layout.Sequence(cfg.After)))
	}
	return g, nil
}

// Next returns the next ID. When the 1,024 of a millisecond are used up it waits
// for the next one; it returns ctx's error when ctx ends before that.
func (g *Generator) Next(ctx context.Context) (ID, error) {
	for waited := false; ; waited = true {
		id, wait, err := g.try(waited)
		if err != nil || wait == 0 {
			return id, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return 0, fmt.Errorf("idgen: wait for the next millisecond of shard %d: %w", g.shard, ctx.Err())
		}
	}
}

// try returns an ID, or how long to wait before the next try. It is told
// whether the caller has waited already.
func (g *Generator) try(waited bool) (ID, time.Duration, error) {
	bits := g.layout.SequenceBits
	for {
		last := g.last.Load()
		t := g.now()
		now := t.UnixMilli() - g.layout.Epoch.UnixMilli()
		if now < 0 || now >= g.layout.span() {
			return 0, 0, fmt.Errorf("%w: %s, want %s to %s", ErrRunOut,
				t.UTC().Format(time.RFC3339), g.layout.Epoch.UTC().Format(time.RFC3339), g.layout.RunsOut().Format(time.RFC3339))
		}
		next := last + 1
		lastMS := last >> bits
		switch {
		case now > lastMS:
			// The sequence goes on from the last one, within 64, instead of
			// starting at 0: else an ID made at a quiet time would always
			// end in zeros, and id % n would fill one partition of n.
			next = now<<bits | (next & stagger)
		case lastMS-now > g.maxBack:
			return 0, 0, fmt.Errorf("%w by %v: shard %d", ErrClockBack, time.Duration(lastMS-now)*time.Millisecond, g.shard)
		case next>>bits > lastMS && (now == lastMS || !waited):
			// The millisecond is used up. Behind a clock that stepped back
			// the IDs go on into the next one, but not faster than the clock
			// does: one wait for each millisecond.
			return 0, t.Truncate(time.Millisecond).Add(time.Millisecond).Sub(t), nil
		}
		if next>>bits >= g.layout.span() {
			return 0, 0, fmt.Errorf("%w: the last ID of shard %d has been made", ErrRunOut, g.shard)
		}
		if g.last.CompareAndSwap(last, next) {
			return ID(next>>bits<<(bits+g.layout.ShardBits) | g.shard<<bits | next&(1<<bits-1)), 0, nil
		}
	}
}
