// Package feedcache keeps home feeds in Redis: for each owner, the newest IDs
// of a list that lives in the store of record.
//
// # Problem
//
// A new post goes to the feed of each follower, and a feed is read far more
// often than it changes. A sorted set costs 129 bytes an entry and rounds 64-bit
// IDs, as its scores are doubles. A cached list that is written while it is
// being rebuilt loses posts, and one with a cap ends where the cap is.
//
// # Scheme
//
// A feed is one Redis list. Its first two elements hold the IDs, packed; what
// follows are operations in the order they arrived. All numbers are big-endian.
//
//	index    0            1                2         3         …
//	         ┌────────────┬────────────────┬─────────┬─────────┬──
//	         │ older ops, │ header, newest │ op      │ op      │ …
//	         │ ascending  │ ops, ascending │         │         │
//	         └────────────┴────────────────┴─────────┴─────────┴──
//	                       1st page reads from here ─►     ◄─ RPUSHX
//
//	header   ┌───────┬───────┬────────────┬───────┬────────────┬────────┬──────────┬──────┐
//	         │ magic │ state │ generation │ floor │ head floor │ server │ deadline │ mark │
//	         │ 0xFC  │ B, L  │ random     │ ID    │ ID         │ hex    │ Unix ms  │ ID   │
//	         └───────┴───────┴────────────┴───────┴────────────┴────────┴──────────┴──────┘
//	bytes      1       1       6            8       8            16       8          8
//
//	op       ┌───┬─────────────────────────────────────────────────────┐
//	8 bytes  │ T │ ID, 63 bits                                         │
//	         └───┴─────────────────────────────────────────────────────┘
//	           T = 0: the ID is in the feed; T = 1: the ID was removed
//
// State B is a feed that is being filled, L one that is ready. An element of 9
// bytes, S and an ID, moves the mark: how far the owner has read.
//
// The floor is the oldest ID the feed is complete down to, or 0 if the feed has
// all there is; the head floor is the same of the list without its first
// element. A reader drops IDs below the floor and IDs that were removed at any
// time, and sorts the rest. So order and repetition of operations do not matter.
//
//   - A push is RPUSHX: it appends to a feed that exists (a warm feed), does
//     nothing to one that does not, and returns the length.
//   - A reader that finds no feed takes a lease by writing a header in state B.
//     From then on pushes land behind it. Only then does it read the [Source],
//     and it puts what it read before the pushes: a swap. Other readers wait for
//     it; those in other processes 155 ms at most, then they read the Source and
//     store nothing.
//   - A swap is one script. It does nothing unless the generation is the one
//     the writer saw, keeps every element after those the writer saw, and sets
//     a new generation. Whoever lost the lease can therefore harm nothing.
//   - A feed with 100 ops (Cap/8, if that is less) is compacted by a swap: they go into the second
//     element, and when that is long the whole feed is written anew, with the
//     newest [Config].Cap IDs and the floor at the oldest kept.
//   - The header names the server the feed was filled on, by its replication
//     ID, which changes when a server starts or becomes a primary. A feed of
//     another one may have lost pushes, and counts as absent.
//
// Of the layouts that keep the IDs exact this one takes the most pushes, by a
// factor of two and more, and is as small as any: a string that grows by APPEND
// costs 18 bytes an entry, as Redis doubles its buffer, and one with free slots
// needs a script for each push (BenchmarkPush and BenchmarkPage have them all).
//
// A [Hybrid] reads a feed together with the outboxes of authors who have too
// many followers for fan-out. A [Fanout] delivers to all followers of an author
// as jobs of a [Queue].
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
// This asks of the caller that the Source sees every commit that came before its
// call: the primary, or a replica known to be that far. And whatever changes what
// it answers is followed by a call here, repeated until it returns no error:
//
//	change                        after its commit
//	a post                        Push to all followers, and the author: [Fanout]
//	a post deleted                Remove, the same way
//	a follow, an unfollow,        [Feeds.Edit] or Drop of that one feed,
//	a block, a mute               whether the author is pulled or not
//	a deleted post is restored    Drop, of each feed that may have had it
//	read up to an ID              [Feeds.Seen]
//
// In the transaction of a post goes the job that pushes it ([Queue]), so that a
// crash after the commit loses nothing.
//
// A failover to a replica that lags, and a restart from an old snapshot, lose
// nothing: the feeds are filled anew. Programs notice it after
// [Config].FailoverCheck at most. As a failover usually takes longer than that,
// no page comes from the new server before they do.
//
// # Not guaranteed
//
//   - A removed ID can come back, if the feed is evicted after the removal and
//     a late push of that ID arrives afterwards. Drop IDs that the store of
//     record no longer knows when you load the objects of a page, in [Keep].
//   - The fan-out of a post that began before an unfollow may push it after the
//     Edit. Check in Keep whom the owner follows.
//   - A removal is for as long as the feed is warm: a later Push of the same ID
//     does not bring it back, only an Edit that adds it or a Drop does.
//   - A push to a cold feed is not stored; the Source has it at the next read.
//   - A primary that was replaced and does not know it may still take a push,
//     and lose it. If the feed was filled on the new one before the post was
//     made, it has a hole. Redis' min-replicas-to-write is the setting against
//     it.
//   - The keys are this package's. A push to a list of somebody else's under
//     the same key appends to it.
//
// # Cost
//
// A first page of up to 50 IDs (Cap/16) of a warm feed is one round trip of 2 KB
// on average, and 4 µs of the server's time; a page further down carries the
// whole feed, 8 KB. When half of the TTL has passed, a page takes one more to renew
// it. A page of a cold feed takes three round trips and one call of the Source.
// A page that goes below the floor adds one call of the Source. A push is one
// round trip for 500 feeds, of which two run at a time; a compaction adds two
// for 64 feeds, once in 100 pushes to a feed, and a third when it writes whole
// feeds. A script that the server does not know, as after a restart, costs one
// more. An entry takes 9.3 bytes after a fill and 10.5 on average, with the key
// and all else counted (BenchmarkPush, feeds of 800, Redis 7.0). A feed nobody
// reads expires after [Config].TTL, pushes or not. A feed that moved to another
// node of a Cluster is filled anew.
//
// # Failure
//
// When Redis cannot be reached, pages come from the Source: right, only slower,
// and at most [Config].SourceLimit at once. The page that finds it out waits for
// the timeouts and retries of the client, and the others leave that server alone
// for [Config].RetryAfter. With the client's defaults that page waits 3 s for a
// connection that is refused and 40 s for a server that hangs, and pushes do so
// each time. For a server nearby this is better, 20 ms and 0.8 s:
//
//	redis.NewClient(&redis.Options{
//		DialTimeout: 200 * time.Millisecond, ReadTimeout: 200 * time.Millisecond,
//		WriteTimeout: 200 * time.Millisecond, MaxRetries: 1, DialerRetries: 1,
//		ContextTimeoutEnabled: true, // else ctx does not interrupt a command
//	})
//
// A value that is not a feed, or is one of a later version, counts as absent and
// is replaced. Eviction is safe at any time. Push, Remove, Edit and Drop report
// errors and are safe to repeat.
//
// A failover makes all feeds of that server cold, and the Source has to fill
// them as they are read. The replication ID also changes when a primary gets its
// first replica, or a replica after it had none for repl-backlog-ttl, an hour by
// default: set that to 0.
//
// Each script and each command uses one key, so Redis Cluster works. They are
// EVAL, EVALSHA, RPUSHX, LRANGE, UNLINK, and in scripts EXISTS, INFO, LINDEX,
// LRANGE, LSET, LTRIM, PEXPIRE, RPUSH and UNLINK. Where a user may not run one of
// them, every page comes from the Source, and [Stats].RedisFailures and
// [Config].Observe are where it shows: watch one of them.
//
// # Source
//
// Fan-out on write to capped lists in Redis is how Twitter and Instagram built
// home timelines: Raffi Krikorian, "Timelines at Scale", QCon 2012; Rick
// Branson, "Messaging at Scale at Instagram", PyCon 2013. Adds and removals
// form the two-phase set of Shapiro et al., "A comprehensive study of
// Convergent and Commutative Replicated Data Types", INRIA 2011. Push or pull
// for each pair is Silberstein et al., "Feeding Frenzy", SIGMOD 2010.
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

// top is above every ID: "from the newest" for a Source, which then needs no
// case of its own for the first page.
const top = math.MaxInt64

// Source reads an owner's feed from the store of record: at most n IDs below
// before, newest first. Fewer than n IDs mean that there are no more. It is
// never called with before 0: for the newest IDs before is the largest int64.
// It must be safe for concurrent use and see every commit that came before the
// call.
type Source func(ctx context.Context, owner, before int64, n int) ([]int64, error)

// Config says how feeds are kept. The zero Config works.
type Config struct {
	// Prefix begins every key, before a colon and the owner in decimal. Feeds of
	// different kinds need different prefixes: home feeds, outboxes,
	// notifications. It must not contain braces. Default: "feed".
	Prefix string

	// Cap is the number of IDs a feed keeps when it is written anew, 1 to
	// 100,000. A page below the first reads the whole feed, and so does one of
	// more than Cap/16 IDs: keep it moderate, but not small. Default: 800.
	Cap int

	// TTL bounds how long a feed outlives its last page: by half of TTL at
	// least, by all of it at most. At least a millisecond. Default: 14 days.
	TTL time.Duration

	// LeaseTTL is how long one reader may take to fill a feed from the Source.
	// If the Source is slower, feeds are never stored. At least a millisecond.
	// Default: 10 s.
	LeaseTTL time.Duration

	// FailoverCheck is how long it may take until a failover or a restart of a
	// server is noticed; until then pages can miss its last pushes. The check
	// takes 5 µs of the server's time, once in that span. It should be shorter
	// than a failover takes, which then harms no page. Default: 1 s.
	FailoverCheck time.Duration

	// RetryAfter is how long pages leave a server alone that did not answer, so
	// that not each of them waits for the timeouts of the client. Default: 1 s.
	RetryAfter time.Duration

	// SourceLimit is how many readers ask the Source, and for the Mark, at once;
	// others wait. It is what the store of record has to bear of each process
	// when Redis is gone or empty. Default: 64.
	SourceLimit int

	// Mark reads the ID up to which the owner has read from the store of record,
	// 0 for none, when a feed is filled. Default: none has read anything.
	Mark func(ctx context.Context, owner int64) (int64, error)

	// Observe is told what happens, within the call it happens in, and by many
	// goroutines at once: it must be quick. Default: nobody is told.
	Observe func(Event)

	// Now is the clock that tells how much of a TTL is left. Default: time.Now.
	Now func() time.Time
}

// Feeds reads and writes the feeds of all owners. It is safe for concurrent
// use, and has nothing to close.
type Feeds struct {
	rdb      redis.UniversalClient
	src      Source
	cfg      Config
	prefix   string        // of a key, with the colon
	sources  chan struct{} // holds one for each reader who asks src
	servers  incarnations
	breaker  breaker
	fills    fills
	counters counters
}

// New returns the feeds that rdb holds and src can rebuild. It does not dial.
// The client is of one server, by Sentinel or not, or of a Cluster, and reads
// from primaries only.
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
	if cfg.FailoverCheck == 0 {
		cfg.FailoverCheck = time.Second
	}
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = time.Second
	}
	if cfg.SourceLimit == 0 {
		cfg.SourceLimit = 64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := suitable(rdb); err != nil {
		return nil, err
	}
	switch {
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
	case cfg.FailoverCheck < 0:
		return nil, fmt.Errorf("feedcache: Config.FailoverCheck is %v: want more than 0", cfg.FailoverCheck)
	case cfg.RetryAfter < 0:
		return nil, fmt.Errorf("feedcache: Config.RetryAfter is %v: want more than 0", cfg.RetryAfter)
	case cfg.SourceLimit < 1:
		return nil, fmt.Errorf("feedcache: Config.SourceLimit is %d: want at least 1", cfg.SourceLimit)
	}
	return &Feeds{rdb: rdb, src: src, cfg: cfg, prefix: cfg.Prefix + ":", sources: make(chan struct{}, cfg.SourceLimit)}, nil
}

// suitable refuses clients with which feeds would not be exact.
func suitable(rdb redis.UniversalClient) error {
	switch c := rdb.(type) {
	case nil:
		return errors.New("feedcache: the client is nil")
	case *redis.Ring:
		return errors.New("feedcache: a Ring moves keys between servers and back, and feeds would lose pushes: use Redis Cluster")
	case *redis.ClusterClient:
		if o := c.Options(); o.ReadOnly || o.RouteByLatency || o.RouteRandomly {
			return errors.New("feedcache: the cluster client reads from replicas, which lack the last pushes: want one that reads from primaries")
		}
	}
	return nil
}

func (f *Feeds) key(owner int64) string {
	return string(strconv.AppendInt(append(make([]byte, 0, 64), f.prefix...), owner, 10))
}

// valid reports whether an owner or ID is in range. The largest int64 is kept
// free, as it stands for "above every ID".
func valid(n int64) bool { return 0 < n && n < top }
