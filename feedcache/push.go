package feedcache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/redis/go-redis/v9"
)

// A window is the number of feeds that are pushed to in one round trip:
// maxWindow, or fewer if many IDs would make it longer than maxBytes. Two are
// under way at a time, so that the client makes one while Redis does the other.
const (
	maxWindow = 500
	maxBytes  = 1 << 20
	underWay  = 2
)

// What is delivered, in the words of an error.
const (
	opPush   = "push"
	opRemove = "remove"
	opSeen   = "seen"
)

// Delivery counts the feeds a Push or Remove reached.
type Delivery struct {
	// Warm feeds took the IDs.
	Warm int

	// Cold feeds were not there and stay so; the Source has the IDs.
	Cold int
}

// Push adds the IDs to the feeds of the owners that are warm. Order does not
// matter, and repeating a Push changes nothing, so it is safe to repeat one
// that failed, and needed: a warm feed that misses a push has a hole. At an
// error it stops, and returns an [*UnreachedError] that names the owners it could not
// reach, of those it has tried; the Delivery counts those it has reached. It
// also stops at an owner out of range, with an [ErrInvalid], when those before
// have got the IDs.
func (f *Feeds) Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (Delivery, error) {
	return f.deliver(ctx, opPush, owners, ids, 0)
}

// Remove takes the IDs out of the feeds of the owners that are warm, also for
// pushes that arrive later. It is as safe to repeat as [Feeds.Push], and as
// needed.
func (f *Feeds) Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (Delivery, error) {
	return f.deliver(ctx, opRemove, owners, ids, removal)
}

func (f *Feeds) deliver(
	ctx context.Context, op string, owners iter.Seq[int64], ids []int64, mark uint64,
) (Delivery, error) {
	if len(ids) == 0 {
		return Delivery{}, nil
	}
	if i := slices.IndexFunc(ids, func(id int64) bool { return !valid(id) }); i >= 0 {
		return Delivery{}, fmt.Errorf("feedcache: %s: %w: ID at index %d", op, ErrInvalid, i)
	}
	return f.append(ctx, op, owners, encodeOps(ids, mark))
}

// append pushes the ops to the feeds of the owners.
func (f *Feeds) append(ctx context.Context, op string, owners iter.Seq[int64], ops []any) (Delivery, error) {
	var (
		p      = &parcel{op: op, ops: ops}
		slots  = make(chan struct{}, underWay)
		size   = max(1, min(maxWindow, maxBytes/(len(ops)*2*opLen)))
		window []int64
		wrong  error
		ran    sync.WaitGroup
	)
	send := func() {
		sent := window
		window = nil
		slots <- struct{}{}
		ran.Go(func() {
			defer func() { <-slots }()
			f.send(ctx, p, sent)
		})
	}
	defer ran.Wait() // also when owners panics
	for owner := range owners {
		if !valid(owner) {
			wrong = fmt.Errorf("feedcache: %s %s: %w: owner", op, f.key(owner), ErrInvalid)
			break
		}
		if window = append(window, owner); len(window) == size {
			if send(); p.failed() {
				break
			}
		}
	}
	if len(window) > 0 && !p.failed() {
		send()
	}
	ran.Wait()
	f.compact(ctx, p.takeLong(nil, 0))
	return p.delivery, errors.Join(wrong, p.result(f))
}

// A parcel is what one Push delivers, and how far it has come.
type parcel struct {
	op  string
	ops []any

	mu       sync.Mutex
	delivery Delivery
	missed   []int64
	err      error   // of the first of them
	long     []int64 // owners whose feeds are to be compacted
}

// takeLong adds owners whose feeds are to be compacted, and returns all of them
// once there are least. A window has only a few: each on its own would make
// every one of them wait for two more round trips.
func (p *parcel) takeLong(owners []int64, least int) []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.long = append(p.long, owners...)
	if len(p.long) < least {
		return nil
	}
	long := p.long
	p.long = nil
	return long
}

func (p *parcel) failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *parcel) result(f *Feeds) error {
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("feedcache: %s %s: %w", p.op, f.key(p.missed[0]), &UnreachedError{Owners: p.missed, Err: p.err})
}

// send delivers the parcel to one window of owners.
func (f *Feeds) send(ctx context.Context, p *parcel, owners []int64) {
	pipe := f.rdb.Pipeline()
	cmds := make([]*redis.IntCmd, len(owners))
	for i, owner := range owners {
		cmds[i] = pipe.RPushX(ctx, f.key(owner), p.ops...)
	}
	exec(ctx, pipe)
	var (
		d      Delivery
		long   []int64
		missed []int64
		first  error
	)
	for i, cmd := range cmds {
		length, err := cmd.Result()
		switch {
		case isFailure(err):
			if missed = append(missed, owners[i]); first == nil {
				first = because(ctx, err)
			}
		case err != nil || length == 0:
			d.Cold++
		default:
			d.Warm++
			// Tried once for each slack of ops: a feed that is being filled
			// cannot be compacted.
			if ops := int(length) - 2; ops/f.slack() != (ops-len(p.ops))/f.slack() {
				long = append(long, owners[i])
			}
		}
	}
	p.mu.Lock()
	p.delivery.Warm += d.Warm
	p.delivery.Cold += d.Cold
	p.missed = append(p.missed, missed...)
	if p.err == nil {
		p.err = first
	}
	p.mu.Unlock()
	if p.op != opSeen {
		f.note(Event{Kind: Delivered, N: d.Warm})
		f.note(Event{Kind: SkippedCold, N: d.Cold})
	}
	f.compact(ctx, p.takeLong(long, compactWindow))
}

// Drop makes the feeds of the owners cold. A page that begins after Drop
// returned shows nothing that was read from the Source before Drop began. Drop
// is safe to repeat. Its errors are those of [Feeds.Push].
func (f *Feeds) Drop(ctx context.Context, owners ...int64) error {
	for _, owner := range owners {
		if !valid(owner) {
			return fmt.Errorf("feedcache: drop %s: %w: owner", f.key(owner), ErrInvalid)
		}
	}
	for owners := range slices.Chunk(owners, maxWindow) {
		if err := f.dropped(ctx, owners); err != nil {
			return fmt.Errorf("feedcache: drop %s: %w", f.key(err.Owners[0]), err)
		}
	}
	return nil
}

func (f *Feeds) dropped(ctx context.Context, owners []int64) *UnreachedError {
	keys := make([]string, len(owners))
	for i, owner := range owners {
		keys[i] = f.key(owner)
	}
	failed, err := f.unlink(ctx, keys)
	if err == nil {
		return nil
	}
	e := &UnreachedError{Err: err}
	for _, i := range failed {
		e.Owners = append(e.Owners, owners[i])
	}
	return e
}

// An UnreachedError says which feeds a Push, a Remove, a Drop, an Edit or a mark
// could not reach. It is wrapped. To repeat the call for these owners is safe,
// and needed: until then their feeds may lack it.
type UnreachedError struct {
	// Owners are those that were tried. A Push of more has tried no others.
	Owners []int64

	// Err is what the client said of one of them.
	Err error
}

func (e *UnreachedError) Error() string {
	switch n := len(e.Owners) - 1; n {
	case 0:
		return e.Err.Error()
	case 1:
		return fmt.Sprintf("%v (and 1 more feed)", e.Err)
	default:
		return fmt.Sprintf("%v (and %d more feeds)", e.Err, n)
	}
}

// Unwrap returns Err.
func (e *UnreachedError) Unwrap() error { return e.Err }
