package idgen

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// AnyShard lets [Open] choose a shard number that nobody holds.
const AnyShard = -1

// Leases is where [Open] keeps who holds a shard number, and the mark up to
// which its IDs may have been made. [FileLeases] is one for the processes of one
// machine; pglease and redislease are for those of many.
type Leases interface {
	// Claim makes the caller the holder of a shard number, or of one that
	// nobody holds if shard is AnyShard; if all are held it returns ErrHeld. A
	// number once held keeps its mark for ever, and the layout with it: Claim
	// fails when that is another one.
	//
	// A holder that is alive may lose a number that was asked for by name: the
	// newest wins, or the store returns ErrHeld. Open asks only for numbers of
	// the layout.
	Claim(ctx context.Context, shard int, layout Layout) (Lease, error)
}

// A Lease is a shard number that is held. Its methods are called one at a time.
type Lease interface {
	// Shard returns the number.
	Shard() int

	// Mark returns what the mark was when the number was claimed: no holder
	// before has returned an ID above it. 0 is a number never used.
	Mark() ID

	// Extend stores a mark that is no lower than the one before, and keeps the
	// number held. It returns nil only when the mark is stored durably, and
	// ErrLeaseLost when the number has been claimed by another since, which it
	// must find out in the same atomic step. After any other error the old or
	// the new mark may be stored, and Extend is called again.
	Extend(ctx context.Context, mark ID) error

	// Release gives the number back, with the last ID that was made as its
	// mark, and frees what the lease holds. It is the last call, made once,
	// also after ErrLeaseLost. A number that has been lost is left alone, which
	// is no error.
	Release(ctx context.Context, mark ID) error
}

// hold is what Open adds to a generator.
type hold struct {
	lease      Lease
	window     time.Duration
	patience   time.Duration   // with one Extend
	background context.Context // of renew; ends with Close
	cancel     context.CancelFunc
	ended      sync.WaitGroup
	nudge      chan struct{}
	failed     atomic.Pointer[error] // of the last Extend, nil if it worked

	turn chan struct{} // holds one token, for what follows and for lease

	// lost is why there is no lease any more; limit changes after it.
	lost error

	// The clock was seen to be in the millisecond clock at the moment at.
	clock int64
	at    time.Time

	once sync.Once
	err  error // of Close
}

// Open returns a generator of a shard, or of any that is free for [AnyShard],
// whose IDs are above all that were made of that shard with the same leases
// before: after a crash, with a clock that was set back, and when its number was
// another process's until now. It takes two round trips.
//
// A number asked for by name that another process still holds is taken from it
// by pglease and redislease: the newest wins, and the other one gets
// [ErrLeaseLost]. [FileLeases] returns [ErrHeld] until that process has ended.
//
// The mark is stored [Config.Window] ahead of use, in the background, so that
// Next need not wait for the store. When that has failed for long, Next tries it
// itself and returns its error; TryNext, and all methods under [Refuse], return
// the error of the background. A store that does not answer within a third of the
// window, or a second if that is longer, has failed. A retry is safe.
//
// Close the generator, to give the number back.
func Open(ctx context.Context, leases Leases, shard int, cfg Config) (*Generator, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if shard < AnyShard || shard > cfg.Layout.MaxShard() {
		return nil, fmt.Errorf("idgen: shard %d: want AnyShard, or 0 to %d", shard, cfg.Layout.MaxShard())
	}
	if shard == AnyShard && cfg.After != 0 {
		return nil, fmt.Errorf("idgen: Config.After is %d: want 0 with AnyShard", cfg.After)
	}
	if shard != AnyShard {
		if _, err := newGenerator(shard, cfg); err != nil {
			return nil, err // before anything is claimed
		}
	}
	if leases == nil {
		return nil, errors.New("idgen: the leases are nil")
	}
	lease, err := leases.Claim(ctx, shard, cfg.Layout)
	if err != nil {
		return nil, fmt.Errorf("idgen: claim %s: %w", shardName(shard), err)
	}
	g, err := openLease(ctx, lease, cfg)
	if err != nil {
		// What was not given back is free after a while.
		return nil, errors.Join(err, giveBack(lease, lease.Mark(), 500*time.Millisecond))
	}
	return g, nil
}

func openLease(ctx context.Context, lease Lease, cfg Config) (*Generator, error) {
	cfg.After = max(cfg.After, lease.Mark())
	g, err := newGenerator(lease.Shard(), cfg)
	if err != nil {
		return nil, err
	}
	// After a crash the mark is ahead of the clock by up to a window, which
	// is no step back.
	g.maxBack += cfg.Window.Milliseconds()
	g.limit.Store(0)
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g.hold = &hold{
		lease:      lease,
		window:     cfg.Window,
		turn:       make(chan struct{}, 1),
		nudge:      make(chan struct{}, 1),
		cancel:     cancel,
		background: background,
		patience:   time.Hour, // for the first Extend, of which only ctx knows
		clock:      g.clock(),
		at:         time.Now(),
	}
	g.hold.turn <- struct{}{}
	if err := g.extend(ctx, 0); err != nil {
		cancel()
		return nil, err
	}
	g.hold.patience = max(cfg.Window/3, time.Second)
	g.hold.ended.Go(func() { g.renew(background) })
	return g, nil
}

// renew stores a new mark long before the old one is reached, and tells the
// store that the number is in use.
func (g *Generator) renew(ctx context.Context) {
	tick := time.NewTicker(g.hold.window / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.hold.nudge:
		}
		// Next meets the error itself, if it lasts.
		if err := g.extend(ctx, 0); errors.Is(err, ErrLeaseLost) {
			return
		}
	}
}

// permit waits until a state that was taken may be returned.
func (g *Generator) permit(ctx context.Context, state int64, wait bool) error {
	for {
		limit := g.limit.Load()
		if state <= limit {
			return nil
		}
		if limit < 0 {
			return g.stopped()
		}
		if !wait {
			select {
			case g.hold.nudge <- struct{}{}:
			default:
			}
			if failed := g.hold.failed.Load(); failed != nil {
				return *failed
			}
			return ErrFull
		}
		if err := g.extend(ctx, state); err != nil {
			return err
		}
	}
}

// extend stores a mark above a state. 0 is the newest.
func (g *Generator) extend(ctx context.Context, state int64) error {
	h := g.hold
	select {
	case <-h.turn:
		defer func() { h.turn <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("idgen: wait for the mark of shard %d: %w", g.shard, ctx.Err())
	}
	limit := g.limit.Load()
	if limit < 0 {
		return g.stopped()
	}
	if state > 0 && state <= limit {
		return nil // somebody else has done it
	}
	if h.background.Err() != nil {
		return g.closed()
	}
	// While the states are ahead of the clock a little is enough, or a program
	// that crashes over and over would get a window further ahead each time.
	window := h.window.Milliseconds()
	ms := max(state, g.last.Load())>>g.bits + window/32
	if now := g.clock(); now >= 0 && now < g.layout.span() {
		if state == 0 {
			// No ID of a leap of the clock has been made. If it turns out to be
			// a mistake, the mark must not stay there; else Next asks for it.
			now = min(now, h.clock+time.Since(h.at).Milliseconds())
		}
		h.clock, h.at = now, time.Now()
		ms = max(ms, now+window)
	}
	mark := max(limit, min(min(ms, g.end>>g.bits)<<g.bits|g.mask, g.end))
	// One call that hangs must not keep the token from the others, nor Close
	// waiting.
	call, cancel := context.WithTimeout(ctx, h.patience)
	defer cancel()
	defer context.AfterFunc(h.background, cancel)()
	if err := h.lease.Extend(call, g.id(mark)); err != nil {
		if h.background.Err() != nil && !errors.Is(err, ErrLeaseLost) {
			return g.closed() // Close has ended the call
		}
		err = fmt.Errorf("idgen: store the mark of shard %d: %w", g.shard, err)
		if errors.Is(err, ErrLeaseLost) {
			h.lost = err
			g.limit.Store(-1)
		}
		h.failed.Store(&err)
		return err
	}
	h.failed.Store(nil)
	g.limit.Store(mark)
	return nil
}

// stopped says why a generator whose limit is negative makes no IDs.
func (g *Generator) stopped() error {
	if g.hold != nil && g.hold.lost != nil {
		return g.hold.lost
	}
	return g.closed()
}

func (g *Generator) closed() error { return fmt.Errorf("%w: shard %d", ErrClosed, g.shard) }

// Close ends a generator: from then on its methods return [ErrClosed], or
// [ErrLeaseLost] if that was the end. One of [Open] stores its last ID and gives
// its shard number back, for which it waits up to 5 s. A second call returns the
// same error.
func (g *Generator) Close() error {
	h := g.hold
	if h == nil {
		g.limit.Store(-1)
		return nil
	}
	h.once.Do(func() {
		h.cancel()
		h.ended.Wait()
		<-h.turn
		defer func() { h.turn <- struct{}{} }()
		// Whoever still gets an ID has seen the old limit, so its state is in
		// last by now.
		g.limit.Store(-1)
		h.err = giveBack(h.lease, g.id(min(g.last.Load(), g.end)), 5*time.Second)
	})
	return h.err
}

func giveBack(lease Lease, last ID, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := lease.Release(ctx, last); err != nil {
		return fmt.Errorf("idgen: give back shard %d: %w", lease.Shard(), err)
	}
	return nil
}

func shardName(shard int) string {
	if shard == AnyShard {
		return "any shard"
	}
	return fmt.Sprintf("shard %d", shard)
}
