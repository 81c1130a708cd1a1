package feedcache

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// A window is the number of feeds that are pushed to in one round trip:
// maxWindow, or fewer if many IDs would make it longer than maxBytes.
const (
	maxWindow = 500
	maxBytes  = 1 << 20
)

// compactWindow is smaller, as whole feeds travel in both directions.
const compactWindow = 64

// Delivery counts the feeds a Push or Remove reached.
type Delivery struct {
	// Warm feeds took the IDs.
	Warm int

	// Cold feeds were not there and stay so; the Source has the IDs.
	Cold int
}

// Push adds the IDs to the feeds of the owners that are warm. Order does not
// matter, and repeating a Push changes nothing, so it is safe to repeat one
// that failed, and needed: a warm feed that misses a push has a hole. It stops
// at the first window of feeds with an error, which names the key of a feed
// that failed; the Delivery counts what was done until then, and IDs may have
// reached feeds it does not count.
func (f *Feeds) Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (Delivery, error) {
	return f.deliver(ctx, "push", owners, ids, 0)
}

// Remove takes the IDs out of the feeds of the owners that are warm, also for
// pushes that arrive later. It is as safe to repeat as [Feeds.Push], and as
// needed.
func (f *Feeds) Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (Delivery, error) {
	return f.deliver(ctx, "remove", owners, ids, removal)
}

func (f *Feeds) deliver(
	ctx context.Context, verb string, owners iter.Seq[int64], ids []int64, mark uint64,
) (Delivery, error) {
	var d Delivery
	if len(ids) == 0 {
		return d, nil
	}
	if i := slices.IndexFunc(ids, func(id int64) bool { return !valid(id) }); i >= 0 {
		return d, fmt.Errorf("feedcache: %s: %w: ID at index %d", verb, ErrInvalid, i)
	}
	ops := encodeOps(ids, mark)
	window := max(1, min(maxWindow, maxBytes/len(ops)))
	calls := make([]call, 0, window)
	for owner := range owners {
		if !valid(owner) {
			return d, fmt.Errorf("feedcache: %s %s: %w: owner", verb, f.key(owner), ErrInvalid)
		}
		calls = append(calls, call{key: f.key(owner), args: []any{ops}})
		if len(calls) == window {
			if err := f.send(ctx, &d, calls); err != nil {
				return d, fmt.Errorf("feedcache: %s %w", verb, err)
			}
			calls = calls[:0]
		}
	}
	if err := f.send(ctx, &d, calls); err != nil {
		return d, fmt.Errorf("feedcache: %s %w", verb, err)
	}
	return d, nil
}

// send makes the calls of one window and adds their outcome to d.
func (f *Feeds) send(ctx context.Context, d *Delivery, calls []call) error {
	if len(calls) == 0 {
		return nil
	}
	var (
		long   []string
		failed int
		first  error
	)
	for i, cmd := range f.run(ctx, pushScript, calls) {
		length, err := cmd.Int()
		switch {
		case err != nil:
			if failed++; failed == 1 {
				first = fmt.Errorf("%s: %w", calls[i].key, because(ctx, err))
			}
		case length < 0:
			d.Cold++
		default:
			d.Warm++
			if length > headerLen+2*opLen*f.cfg.Cap {
				long = append(long, calls[i].key)
			}
		}
	}
	f.compact(ctx, long)
	if failed > 1 {
		return fmt.Errorf("%w (and %d more of %d feeds)", first, failed-1, len(calls))
	}
	return first
}

// compact rewrites logs that grew long. The ops have landed, so nothing is
// lost if it fails: the next push to the feed tries again. It keeps the TTL,
// since pushes must not keep the feed of an absent owner alive.
func (f *Feeds) compact(ctx context.Context, keys []string) {
	for keys := range slices.Chunk(keys, compactWindow) {
		var swaps []call
		for i, value := range f.getMulti(ctx, keys) {
			if l, ok := parse(value); ok && l.state() == ready {
				swaps = append(swaps, f.swap(keys[i], l.tag, len(value), l.trim(f.cfg.Cap), 0))
			}
		}
		f.run(ctx, swapScript, swaps)
	}
}
