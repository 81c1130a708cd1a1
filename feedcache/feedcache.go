// Package feedcache keeps home feeds in Redis: for each owner, the newest IDs
// of a list that lives in the store of record.
//
// # Problem
//
// A new post goes to the feed of each follower, and a feed is read far more
// often than it changes. A sorted set costs over 100 bytes an entry and rounds
// 64-bit IDs, as its scores are doubles. A cached list that is written while
// it is being rebuilt loses posts, and one with a cap ends where the cap is.
//
// # Scheme
//
// A feed is one Redis string: a header, then a log of operations in the order
// they arrived. All numbers are big-endian.
//
//	offset   0       1       2            8         16       24       32
//	         ┌───────┬───────┬────────────┬─────────┬────────┬────────┬───
//	         │ magic │ state │ generation │ floor   │ op     │ op     │ …
//	         │ 0xFC  │ B, R  │ random     │ ID or 0 │        │        │
//	         └───────┴───────┴────────────┴─────────┴────────┴────────┴───
//	bytes      1       1       6            8         8        8
//
//	op       ┌───┬─────────────────────────────────────────────────────┐
//	         │ T │ ID, 63 bits                                         │
//	         └───┴─────────────────────────────────────────────────────┘
//	           T = 0: the ID is in the feed; T = 1: the ID was removed
//
// The floor is the oldest ID the feed is complete down to, or 0 if the feed
// has all there is. A read drops IDs below the floor and IDs that were removed
// at any time, and sorts the rest. So order and repetition of operations do
// not matter.
//
//   - A push appends to a feed that exists (a warm feed) and does nothing to
//     one that does not, in one step.
//   - A reader that finds no feed takes a lease by writing a header in state B.
//     From then on pushes land behind it. Only then does it read the [Source],
//     and it puts what it read between a new header and the pushes: a swap.
//     Other readers wait for it 155 ms at most, then read the Source and store
//     nothing.
//   - A swap is one script. It does nothing unless the generation is the one
//     the writer saw, keeps every byte after those the writer saw, and sets a
//     new generation. Whoever lost the lease can therefore harm nothing.
//   - A log of more than twice the cap is compacted by a swap: one op for each
//     ID, the newest [Config].Cap of them, and the floor at the oldest kept.
//
// # Guarantees
//
// While a feed is warm, it shows each ID at or above the floor that the Source
// had or that was pushed, and that was not removed. Pages are strictly
// descending by ID, and are exact for 63-bit IDs. Below the floor a page
// continues from the Source, so a feed does not end at the cap. A walk by
// [Page].Next shows each ID that is there from the first page to the last
// exactly once.
//
// This asks three things of the caller. Push and Remove come after the commit
// of the change, and are repeated until they return no error. The Source sees
// every commit that came before its call: the primary, or a replica known to
// be that far. What changes the Source's answer in another way (a follow, an
// unfollow) is followed by Push, Remove or Drop.
//
// # Not guaranteed
//
//   - A removed ID can come back, if the feed is evicted after the removal and
//     a late push of that ID arrives afterwards. Drop IDs that the store of
//     record no longer knows when you load the objects of a page.
//   - Redis that fails over to a replica that lags, or starts from an old
//     snapshot, brings back feeds without their last pushes. Change
//     [Config].Prefix then, and keep no snapshots of this Redis.
//   - A push to a cold feed is not stored; the Source has it at the next read.
//
// # Cost
//
// A page of a warm feed is one round trip and carries the whole feed: 6.4 KB
// at the default cap, up to twice that before a compaction. A second one renews
// the TTL, when half of it has passed. A page of a cold feed takes three round
// trips and one call of the Source. A page that goes below the floor adds one
// call of the Source. A push is one round trip for 500 feeds; a compaction adds
// two for 64 feeds, once per Cap operations at most. A server that does not know
// the script, as after a restart, costs one more. An entry takes 9 bytes after a swap and 18 from the next push on, as
// Redis doubles the buffer of a string that grows (BenchmarkPush, Redis 7.0).
// A feed nobody reads expires after [Config].TTL, pushes or not.
//
// # Failure
//
// When Redis cannot be reached, pages come from the Source: right, only slower.
// How much slower is up to the client: with its defaults a refused connection
// takes seconds, with MaxRetries and DialerRetries 1 milliseconds. Give it
// short timeouts too, and set ContextTimeoutEnabled, without which ctx does not
// interrupt a command that waits. A value that is not a feed, or is one of a
// later version, counts as absent and is replaced. Eviction is safe at any
// time. Push, Remove and Drop report errors and are safe to repeat.
//
// Each script and each command uses one key, so Redis Cluster works.
//
// # Source
//
// Fan-out on write to capped lists in Redis is how Twitter and Instagram built
// home timelines: Raffi Krikorian, "Timelines at Scale", QCon 2012; Rick
// Branson, "Messaging at Scale at Instagram", PyCon 2013. Adds and removals
// form the two-phase set of Shapiro et al., "A comprehensive study of
// Convergent and Commutative Replicated Data Types", INRIA 2011.
package feedcache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrInvalid is returned for an argument out of range: an owner or ID that is
// not between 1 and the largest int64 minus one, a page size that is not
// between 1 and 1000, a negative cursor. It is wrapped. Repeating the call is
// of no use.
var ErrInvalid = errors.New("invalid argument")

// MaxPage is the largest number of IDs in a page.
const MaxPage = 1000

// top is above every ID: "from the newest" for a Source, which then needs no
// case of its own for the first page.
const top = math.MaxInt64

// A reader that finds a lease of somebody else looks again after these waits,
// 155 ms in all, then takes its page from the Source.
const (
	firstWait = 5 * time.Millisecond
	lastWait  = 80 * time.Millisecond
)

// Source reads an owner's feed from the store of record: at most n IDs below
// before, newest first. Fewer than n IDs mean that there are no more. It is
// never called with before 0: for the newest IDs before is the largest int64.
// It must be safe for concurrent use and see every commit that came before the
// call.
type Source func(ctx context.Context, owner, before int64, n int) ([]int64, error)

// Config says how feeds are kept. The zero Config works.
type Config struct {
	// Prefix begins every key, before a colon and the owner in decimal. Feeds of
	// different kinds need different prefixes. It must not contain braces.
	// Default: "feed".
	Prefix string

	// Cap is the number of IDs a feed keeps after a compaction, 1 to 100,000.
	// A page reads the whole feed, so keep it moderate. Default: 800.
	Cap int

	// TTL bounds how long a feed outlives its last page: by half of TTL at
	// least, by all of it at most. At least a millisecond. Default: 14 days.
	TTL time.Duration

	// LeaseTTL is how long one reader may take to fill a feed from the Source.
	// If the Source is slower, feeds are never stored. At least a millisecond.
	// Default: 10 s.
	LeaseTTL time.Duration
}

// Feeds reads and writes the feeds of all owners. It is safe for concurrent
// use, and has nothing to close.
type Feeds struct {
	rdb redis.UniversalClient
	src Source
	cfg Config
}

// New returns the feeds that rdb holds and src can rebuild. It does not dial.
func New(rdb redis.UniversalClient, src Source, cfg Config) (*Feeds, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "feed"
	}
	if cfg.Cap == 0 {
		cfg.Cap = 800
	}
	if cfg.TTL == 0 {
		cfg.TTL = 14 * 24 * time.Hour
	}
	if cfg.LeaseTTL == 0 {
		cfg.LeaseTTL = 10 * time.Second
	}
	switch {
	case rdb == nil:
		return nil, errors.New("feedcache: the client is nil")
	case strings.ContainsAny(cfg.Prefix, "{}"):
		// Redis Cluster would put all feeds on one node.
		return nil, fmt.Errorf("feedcache: Config.Prefix is %q: want no braces", cfg.Prefix)
	case src == nil:
		return nil, errors.New("feedcache: the Source is nil")
	case cfg.Cap < 1 || cfg.Cap > 100_000:
		return nil, fmt.Errorf("feedcache: Config.Cap is %d: want 1 to 100000", cfg.Cap)
	case cfg.TTL < time.Millisecond:
		return nil, fmt.Errorf("feedcache: Config.TTL is %v: want at least 1 ms", cfg.TTL)
	case cfg.LeaseTTL < time.Millisecond:
		return nil, fmt.Errorf("feedcache: Config.LeaseTTL is %v: want at least 1 ms", cfg.LeaseTTL)
	}
	return &Feeds{rdb: rdb, src: src, cfg: cfg}, nil
}

// Page is a part of a feed.
type Page struct {
	// IDs is newest first.
	IDs []int64

	// Next is the cursor of the following page, or 0 at the end of the feed.
	// Where a page ends exactly at the floor, what follows is not known yet,
	// and the following page can turn out empty.
	Next int64
}

// Page returns the newest n IDs below before of the owner's feed; 0 starts at
// the newest. A cold feed is filled on the way. Page fails only if the Source
// fails, ctx ends, or an argument is an [ErrInvalid]; not because of Redis.
func (f *Feeds) Page(ctx context.Context, owner, before int64, n int) (Page, error) {
	page, err := f.page(ctx, owner, before, n)
	if err != nil {
		return Page{}, fmt.Errorf("feedcache: page %s: %w", f.key(owner), err)
	}
	return page, nil
}

func (f *Feeds) page(ctx context.Context, owner, before int64, n int) (Page, error) {
	switch {
	case !valid(owner):
		return Page{}, fmt.Errorf("%w: owner", ErrInvalid)
	case n < 1 || n > MaxPage:
		return Page{}, fmt.Errorf("%w: page size %d, want 1 to %d", ErrInvalid, n, MaxPage)
	case before < 0:
		return Page{}, fmt.Errorf("%w: negative cursor", ErrInvalid)
	case before == 0:
		before = top
	}
	feed, err := f.feed(ctx, owner)
	if err != nil {
		return Page{}, err
	}
	ids, more := feed.below(before, n)
	switch {
	case more || len(ids) == n && feed.floor > 0:
		return Page{IDs: ids, Next: ids[n-1]}, nil
	case feed.floor == 0:
		return Page{IDs: ids}, nil
	}
	// Continue at the floor, not at the last ID: the feed knows all that is
	// left between the two, which is nothing.
	n -= len(ids)
	rest, err := f.read(ctx, owner, min(before, feed.floor), n+1)
	if err != nil {
		return Page{}, err
	}
	if len(rest) <= n {
		return Page{IDs: append(ids, rest...)}, nil
	}
	return Page{IDs: append(ids, rest[:n]...), Next: rest[n-1]}, nil
}

// Drop makes the feeds of the owners cold. A page that begins after Drop
// returned shows nothing that was read from the Source before Drop began. Drop
// is safe to repeat.
func (f *Feeds) Drop(ctx context.Context, owners ...int64) error {
	keys := make([]string, len(owners))
	for i, owner := range owners {
		if keys[i] = f.key(owner); !valid(owner) {
			return fmt.Errorf("feedcache: drop %s: %w: owner", keys[i], ErrInvalid)
		}
	}
	return f.drop(ctx, keys)
}

// feed returns the owner's log, filled from the Source if nobody has, or an
// empty log with the floor at the top if there is none to be had. Its errors
// are those of the Source.
func (f *Feeds) feed(ctx context.Context, owner int64) (opLog, error) {
	none, key := opLog{floor: top}, f.key(owner)
	for wait := firstWait; ; wait *= 2 {
		value, left, err := f.get(ctx, key)
		foreign := redis.HasErrorPrefix(err, "WRONGTYPE")
		if err != nil && !foreign && !errors.Is(err, redis.Nil) {
			return none, nil
		}
		l, ok := parse(value)
		if ok && l.state() == ready {
			if left < f.cfg.TTL/2 {
				// A swap sets the TTL. A plain EXPIRE could hit the lease of
				// a feed that was evicted just now, and the lease of a reader
				// that died would last for the whole TTL.
				f.run(ctx, swapScript, []call{f.swap(key, l.tag, len(value), l.trim(f.cfg.Cap), f.cfg.TTL)})
			}
			return l, nil
		}
		if !ok {
			// Remove only what was there: removing an absent key could take
			// away the lease that another reader has just got.
			if err == nil || foreign {
				f.rdb.Unlink(ctx, key)
			}
			lease := opLog{}.encode(newTag(building))
			won, err := f.rdb.SetNX(ctx, key, lease, f.cfg.LeaseTTL).Result()
			if err != nil {
				return none, nil
			}
			if won {
				return f.fill(ctx, owner, string(lease[:tagLen]))
			}
		}
		if wait > lastWait || !sleep(ctx, wait) {
			return none, nil
		}
	}
}

// fill reads the Source under the lease with this tag and stores the result,
// unless the lease has run out. The result is right in either case.
func (f *Feeds) fill(ctx context.Context, owner int64, tag string) (opLog, error) {
	key := f.key(owner)
	ids, err := f.read(ctx, owner, top, f.cfg.Cap)
	if err != nil {
		// Give the lease back for the next reader, even if ctx is what ended.
		// To the feed of a later lease this does what an eviction does.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 100*time.Millisecond)
		defer cancel()
		f.rdb.Unlink(ctx, key)
		return opLog{}, err
	}
	l := fromSource(ids, f.cfg.Cap)
	f.run(ctx, swapScript, []call{f.swap(key, tag, headerLen, l, f.cfg.TTL)})
	return l, nil
}

// read calls the Source and checks what it promises, as a feed of anything
// else would be wrong for as long as it lives.
func (f *Feeds) read(ctx context.Context, owner, before int64, n int) ([]int64, error) {
	if err := ended(ctx); err != nil {
		return nil, err
	}
	ids, err := f.src(ctx, owner, before, n)
	if err != nil {
		return nil, err
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

func (f *Feeds) key(owner int64) string {
	return f.cfg.Prefix + ":" + strconv.FormatInt(owner, 10)
}

// valid reports whether an owner or ID is in range. The largest int64 is kept
// free, as it stands for "above every ID".
func valid(n int64) bool { return 0 < n && n < top }

// sleep waits for d and reports whether ctx lasted as long.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
