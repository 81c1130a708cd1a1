package idgen

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// stagger masks how much of the sequence goes on into the next millisecond.
	stagger = 1<<6 - 1

	// catchUp is how many milliseconds a generator that was drained may be
	// behind the clock to use up the milliseconds that its sleep missed: timers
	// of Linux wake a little late, and on a busy machine much later.
	catchUp = 16
)

// A Generator makes the IDs of one shard. It is safe for concurrent use. Make it
// with [New] or [Open].
type Generator struct {
	layout   Layout
	shard    int64
	low      int64 // the shard, in its place
	bits     int   // of the sequence
	below    int   // bits below the time
	mask     int64 // of the sequence
	epoch    int64 // of the layout, in milliseconds since 1970
	end      int64 // the last state
	maxBack  int64 // milliseconds
	maxAhead int64 // milliseconds
	refuse   bool
	now      func() time.Time // nil is time.Now
	start    time.Time        // the zero of until

	hold *hold // what Open adds, else nil

	// What follows is read by every call and changes once in a millisecond.

	// begun is the millisecond that reserve last took a state of.
	begun atomic.Int64

	// until is when the millisecond of the clock ends in which reserve took its
	// last state, in nanoseconds of the monotonic clock since start. It is 0
	// when all of it is used up.
	until atomic.Int64

	// limit is the last state that may be returned: the end, or what Open has
	// stored; -1 once the generator is closed or its lease lost.
	limit atomic.Int64

	// backlog is the millisecond up to which those that a late timer missed
	// may be used up.
	backlog atomic.Int64

	// crossed is the millisecond of a clock that stepped back in which the
	// state last went on to a new one.
	crossed atomic.Int64

	_ [64]byte // every call changes last: it has a cache line to itself

	// last is the state: milliseconds << bits | sequence of the newest ID. Time
	// and sequence are one word so that they cannot be read apart. It never
	// goes down.
	last atomic.Int64

	_ [64]byte
}

// newGenerator is New with a checked config.
func newGenerator(shard int, cfg Config) (*Generator, error) {
	l := cfg.Layout
	if shard < 0 || shard > l.MaxShard() {
		return nil, fmt.Errorf("idgen: shard %d: want 0 to %d", shard, l.MaxShard())
	}
	if cfg.After < 0 {
		return nil, fmt.Errorf("idgen: Config.After is %d: want an ID or 0", cfg.After)
	}
	if cfg.After != 0 && l.Shard(cfg.After) != shard {
		return nil, fmt.Errorf("idgen: Config.After is of shard %d: want one of shard %d", l.Shard(cfg.After), shard)
	}
	g := &Generator{
		layout:   l,
		shard:    int64(shard),
		low:      int64(shard) << l.SequenceBits,
		bits:     l.SequenceBits,
		below:    l.ShardBits + l.SequenceBits,
		mask:     int64(l.maxSequence()),
		epoch:    l.Epoch.UnixMilli(),
		maxBack:  cfg.MaxBack.Milliseconds(),
		maxAhead: cfg.MaxAhead.Milliseconds(),
		refuse:   cfg.Overflow == Refuse,
		now:      cfg.Now,
		start:    time.Now(),
	}
	// One less than the layout has: MaxID stays above every ID, and going on
	// from the end cannot overflow.
	g.end = l.span()<<g.bits - 2
	g.last.Store(g.state(cfg.After)) // that of ID 0, which is no ID, without one
	g.begun.Store(g.last.Load() >> g.bits)
	g.crossed.Store(-1)
	g.limit.Store(g.end)
	return g, nil
}

// Shard returns the shard number that the IDs carry.
func (g *Generator) Shard() int { return int(g.shard) }

// Next returns the next ID. If it must wait and ctx ends, it returns ctx's
// error; the generator stays usable.
func (g *Generator) Next(ctx context.Context) (ID, error) {
	if id, ok := g.fast(); ok {
		return id, nil
	}
	v, _, err := g.take(ctx, 1, !g.refuse)
	if err != nil {
		return 0, err
	}
	return g.id(v), nil
}

// TryNext is Next for those who cannot wait: it returns ErrFull instead.
func (g *Generator) TryNext() (ID, error) {
	if id, ok := g.fast(); ok {
		return id, nil
	}
	v, _, err := g.take(context.Background(), 1, false)
	if err != nil {
		return 0, err
	}
	return g.id(v), nil
}

// Fill fills ids with new IDs in increasing order, and returns how many it has
// made: all of them, or fewer and an error. It takes as many as the millisecond
// has in one step, so IDs of other callers lie only between two milliseconds of
// the batch.
func (g *Generator) Fill(ctx context.Context, ids []ID) (int, error) {
	for n := 0; n < len(ids); {
		first, got, err := g.take(ctx, int64(len(ids)-n), !g.refuse)
		if err != nil {
			return n, err
		}
		for got > 0 {
			// Within a millisecond IDs differ by 1; borrowed ones go on into
			// the next.
			run := ids[n:][:min(got, g.mask+1-first&g.mask)]
			number(run, g.id(first))
			n += len(run)
			first += int64(len(run))
			got -= int64(len(run))
		}
	}
	return len(ids), nil
}

// number fills ids with consecutive numbers, four at a time: that saves a third
// of the time.
func number(ids []ID, id ID) {
	for len(ids) >= 4 {
		ids[0], ids[1], ids[2], ids[3] = id, id+1, id+2, id+3
		ids, id = ids[4:], id+4
	}
	for i := range ids {
		ids[i] = id + ID(i)
	}
}

// fast takes an ID in a millisecond that has begun and has room, which is nearly
// always. It changes the state without a look at it: of two goroutines that add 1
// each gets a state of its own, nothing is tried twice, and the cache line moves
// only once between their processors. A state that turns out to lie in another
// millisecond, or above the limit, is dropped.
//
// The monotonic clock tells how long the millisecond lasts; it costs less than
// the wall clock, which only says when the next one begins.
func (g *Generator) fast() (ID, bool) {
	if int64(time.Since(g.start)) >= g.until.Load() {
		return 0, false
	}
	v := g.last.Add(1)
	if v>>(g.bits&63) != g.begun.Load() || v > g.limit.Load() {
		return 0, false
	}
	return ID(v>>(g.bits&63)<<(g.below&63) | g.low | v&g.mask), true
}

// take takes 1 to n states in one step, all of one millisecond or borrowed, and
// returns the first and how many. If it must not wait it returns ErrFull.
func (g *Generator) take(ctx context.Context, n int64, wait bool) (int64, int64, error) {
	for {
		if g.limit.Load() < 0 {
			return 0, 0, g.stopped()
		}
		first, got, until, err := g.reserve(n)
		if err != nil {
			return 0, 0, err
		}
		if got > 0 {
			if err := g.permit(ctx, first+got-1, wait); err != nil {
				return 0, 0, err
			}
			return first, got, nil
		}
		// From here on the calls look before they add, and the millisecond that
		// somebody waits for is used up before a later one.
		g.until.Store(0)
		g.backlog.Store(until + 1)
		if !wait {
			return 0, 0, ErrFull
		}
		if err := g.sleep(ctx, until); err != nil {
			return 0, 0, err
		}
	}
}

// reserve takes 1 to n states, or returns the millisecond to wait for.
func (g *Generator) reserve(n int64) (first, got, until int64, err error) {
	for {
		// The state comes before the clock: the other way round, a goroutine
		// that sleeps in between would take its old time for a step back.
		last := g.last.Load()
		if last&g.mask < g.mask && last < g.end && last>>g.bits == g.begun.Load() && int64(time.Since(g.start)) < g.until.Load() {
			got = min(n, g.mask-last&g.mask, g.end-last)
			if g.last.CompareAndSwap(last, last+got) {
				return last + 1, got, 0, nil
			}
			continue
		}
		t := g.time()
		now := t.UnixMilli() - g.epoch
		if last < 0 || last >= g.end || now < 0 || now >= g.layout.span() {
			return 0, 0, 0, g.ended(last)
		}
		lastMS, full := last>>g.bits, last&g.mask == g.mask
		// Goroutines in fast that added 1 at the same time went over the end.
		over := lastMS > g.begun.Load()
		limit := min(now+g.maxAhead, g.end>>g.bits)
		first, to := last+1, min(limit<<g.bits|g.mask, g.end)

		switch lead := lastMS - limit; {
		case lastMS < now && (full || over) && now-lastMS <= catchUp:
			// A millisecond was used up, so somebody was waiting, and woke late.
			// What was missed is still there.
			g.backlog.Store(now + 1)
		case lastMS < now && now-lastMS <= catchUp && lastMS < g.backlog.Load():
		case lastMS < now:
			// The sequence goes on from the last one, within 64, instead of
			// starting at 0: else an ID made at a quiet time would always end
			// in zeros, and id % n would fill one partition of n.
			first = now<<g.bits | first&stagger
		case lead < 0 || lead == 0 && !full:
			// There is room.
		case lead == 0:
			return 0, 0, now + 1, nil
		case over && lead <= 2: // the clock did not step back
			return 0, 0, now + 1, nil
		case lead > g.maxBack:
			return 0, 0, 0, fmt.Errorf("%w by %v: shard %d", ErrClockBack, time.Duration(lead)*time.Millisecond, g.shard)
		case full && !g.cross(now):
			return 0, 0, now + 1, nil
		default:
			// Behind a clock that stepped back the states go on within the last
			// millisecond, and into a new one not faster than the clock does.
			to = min(first|g.mask, g.end)
		}
		got = min(n, to-first+1)
		if g.last.CompareAndSwap(last, first+got-1) {
			ms := (first + got - 1) >> g.bits
			g.begun.Store(ms)
			if ms <= now && g.now == nil {
				g.until.Store(int64(t.Sub(g.start)) + int64(time.Millisecond) - int64(t.Nanosecond())%int64(time.Millisecond))
			}
			return first, got, 0, nil
		}
	}
}

// cross reports whether the state may go on into a new millisecond though the
// clock is behind it: once in each millisecond of the clock. One that is only just
// before the last is a reading from before it, or a clock that trembles.
func (g *Generator) cross(now int64) bool {
	c := g.crossed.Load()
	return (now > c || now < c-2) && g.crossed.CompareAndSwap(c, now)
}

// sleep waits until the clock is in the next millisecond, ms. If it has stepped
// back since that was found out, it waits no longer for that.
func (g *Generator) sleep(ctx context.Context, ms int64) error {
	timer := time.NewTimer(min(time.UnixMilli(g.epoch+ms).Sub(g.time()), time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("idgen: wait for the next millisecond of shard %d: %w", g.shard, ctx.Err())
	}
}

func (g *Generator) time() time.Time {
	if g.now == nil {
		return time.Now()
	}
	return g.now()
}

// clock returns milliseconds since the layout's epoch.
func (g *Generator) clock() int64 { return g.time().UnixMilli() - g.epoch }

// id returns the ID of a state.
func (g *Generator) id(state int64) ID {
	return ID(state>>g.bits<<g.below | g.low | state&g.mask)
}

// state returns the state of an ID.
func (g *Generator) state(id ID) int64 {
	return g.layout.ms(id)<<g.bits | int64(id)&g.mask
}

// ended says why there is no ID any more, or not yet.
func (g *Generator) ended(last int64) error {
	if last < 0 || last >= g.end {
		return fmt.Errorf("%w: the last ID of shard %d has been made", ErrRunOut, g.shard)
	}
	return g.layout.runOut(g.time())
}
