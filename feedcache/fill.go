package feedcache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// fills are the feeds that this process fills now, with a channel each that is
// closed at the end: its other readers wait for that and ask nobody.
type fills struct {
	mu sync.Mutex
	of map[int64]chan struct{}
}

// begin enters the owner, or reports false if somebody has.
func (f *fills) begin(owner int64) (end func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, busy := f.of[owner]; busy {
		return nil, false
	}
	if f.of == nil {
		f.of = make(map[int64]chan struct{})
	}
	done := make(chan struct{})
	f.of[owner] = done
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.of, owner)
		close(done)
	}, true
}

// done returns the channel of the owner's fill, nil if there is none.
func (f *fills) done(owner int64) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of[owner]
}

// lease tries to become the one reader who fills the owner's feed, in the place
// of what has this tag.
func (f *Feeds) lease(ctx context.Context, owner int64, tag string) (glance, error) {
	end, ok := f.fills.begin(owner)
	if !ok {
		return glance{is: leased}, nil
	}
	defer end()
	// The lease comes after the wait for the Source, and does not run out in it.
	leave, err := f.enter(ctx)
	if err != nil {
		return glance{}, err
	}
	leave = sync.OnceFunc(leave)
	defer leave()
	h := header{tag: newTag(building)}
	before, after := h.encode()
	won := f.run(ctx, leaseScript, []call{{f.key(owner), []any{tag, before, after, f.cfg.LeaseTTL.Milliseconds()}}})[0]
	h.server, err = won.Text()
	switch {
	case errors.Is(err, redis.Nil):
		return glance{is: leased}, nil
	case err != nil:
		f.note(Event{Kind: RedisFailure, Owner: owner, Err: fmt.Errorf("taking a lease: %w", because(ctx, err))})
		return glance{view: nothing}, nil
	}
	v, err := f.fill(ctx, owner, h, leave)
	return glance{v, warm}, err
}

// fill reads the Source under a lease and stores the result, unless the lease
// has run out. The result is right in either case. It leaves the Source to others
// before it stores, as Redis may hang.
func (f *Feeds) fill(ctx context.Context, owner int64, h header, leave func()) (view, error) {
	begin := time.Now()
	v, err := f.rebuilt(ctx, owner)
	leave()
	if err != nil {
		f.giveBack(ctx, owner)
		return view{}, err
	}
	v.tag, v.server, v.seenLen = h.tag, h.server, 2
	done := f.run(ctx, swapScript, []call{f.swap(f.key(owner), v, f.cfg.TTL)})[0]
	switch n, err := done.Int(); {
	case err != nil: // no room, as a rule
		f.note(Event{Kind: RedisFailure, Owner: owner, Err: fmt.Errorf("storing a feed: %w", because(ctx, err))})
		f.giveBack(ctx, owner)
	case n == 1:
		f.note(Event{Kind: Rebuild, Owner: owner, N: len(v.entries), Took: time.Since(begin)})
	}
	return v, nil
}

// giveBack ends a lease for the next reader, even if ctx has ended. To the feed
// of a later lease it does what an eviction does.
func (f *Feeds) giveBack(ctx context.Context, owner int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
	defer cancel()
	_, _ = f.unlink(ctx, []string{f.key(owner)})
}

// rebuilt is a feed as the store of record knows it. The caller has entered.
func (f *Feeds) rebuilt(ctx context.Context, owner int64) (view, error) {
	ids, err := f.source(ctx, owner, top, f.cfg.Cap)
	if err != nil {
		return view{}, err
	}
	v := fromSource(ids, f.cfg.Cap)
	if f.cfg.Mark != nil {
		if v.seen, err = f.cfg.Mark(ctx, owner); err != nil {
			return view{}, fmt.Errorf("mark: %w", err)
		}
		if v.seen < 0 || v.seen == top {
			return view{}, errors.New("mark: ID out of range")
		}
	}
	return v, nil
}

// enter waits for a place among the limited number of those who ask the Source.
func (f *Feeds) enter(ctx context.Context) (leave func(), err error) {
	if err := ended(ctx); err != nil {
		return nil, err
	}
	select {
	case f.sources <- struct{}{}:
		return func() { <-f.sources }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for one of %d calls of the source to end: %w", cap(f.sources), ctx.Err())
	}
}

// source calls the Source and checks what it promises, as a feed of anything
// else would be wrong for as long as it lives. The caller has entered.
func (f *Feeds) source(ctx context.Context, owner, before int64, n int) ([]int64, error) {
	if err := ended(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	ids, err := f.src(ctx, owner, before, n)
	f.note(Event{Kind: SourceRead, Owner: owner, N: len(ids), Took: time.Since(begin), Err: err})
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if len(ids) > n {
		return nil, fmt.Errorf("source returned %d IDs, want at most %d", len(ids), n)
	}
	for i, id := range ids {
		if id < 1 || id >= before {
			return nil, fmt.Errorf("source returned an ID out of order at index %d", i)
		}
		before = id
	}
	return ids, nil
}
