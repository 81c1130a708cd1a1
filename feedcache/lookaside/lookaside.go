// Package lookaside is a read-through cache of objects in memcached that never
// stores a value older than the last invalidation.
//
// # Problem
//
// A cache beside a database is filled by readers: look, miss, load, store. If
// the row changes between the load and the store, the old value stays for the
// whole TTL. And when a popular key is deleted, every reader misses at once and
// the database gets all of them.
//
// # Scheme
//
// A reader that misses first takes a lease: it stores a token under the key.
// Then it loads, and stores the value only over its own token.
//
//	reader A              memcached             reader B          writer
//	  gets k ──────────────► miss
//	  add k = lease, token ► stored
//	  gets k ──────────────► token, cas 7
//	                         lease ◄─────────── gets k
//	  load from the database                    waits 2, 4, 8 ms
//	                                                              commit
//	                         (nothing) ◄───────────────────────── delete k
//	  cas k, 7 = value ────► refused
//	  returns its value                         takes a new lease, loads
//
// The state of an item stands in its flags: a value, a lease, or "the database
// has no such row". Whatever else lies under a key, or cannot be decoded, counts
// as a miss and is replaced.
//
// # Guarantees
//
// After [Cache.Invalidate] returned without error, a Get that starts later sees
// no value that is older than the commit before it. This holds because a load
// starts after its lease exists: either it sees the commit, or the deletion
// came later and took the lease away. So it needs a Loader that reads what is
// committed at that moment: on the primary, and not inside a transaction whose
// snapshot is older.
//
// Each lease is one load: of all readers of a missing key, in all processes, one
// loads and the others wait for it, up to MaxWait; then they load without
// storing. Between the commit and the end of Invalidate readers get the old
// value or the new one, in any order. A process that dies in between leaves the
// old value for the rest of its TTL, unless someone repeats the invalidation. And
// memcached numbers items from 1 when it starts: a load that spans a restart can
// pass for the holder of a later lease and store what it has, which is likely on
// a server without other items. Let a restarted server stand idle for as long as
// a load may take.
//
// # Cost
//
// In round trips to memcached: 1 for any number of hits. For n misses 2, and
// n Adds and n CompareAndSwaps, 8 at a time; so 4 for one miss. Invalidate is n
// deletions, 8 at a time. One Loader call for all misses of a call; more only
// for keys whose lease another reader held and did not fill. An item takes its
// key, its value and about 60 bytes.
//
// # Failure
//
// While memcached cannot be reached, every Get is answered by the Loader and
// nothing is stored; the store of record gets the whole load. A refused
// connection costs next to nothing, a server that hangs costs each call the
// client's Timeout, so set that low. If one of several servers fails, calls that
// touch it do not store what they miss on the others. Invalidate returns an
// error while it cannot reach the server; the old value is still there when the
// server comes back, so the caller must repeat the call. The client knows no
// context: when it ends, calls return after the memcached request under way.
//
// # Source
//
// Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1. The
// leases there are commands of the server; here they are built from add, gets and
// cas, so an ordinary memcached will do.
package lookaside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// ErrNotFound is returned by Get when the Loader has no such key. It may be
// wrapped.
var ErrNotFound = errors.New("lookaside: not found")

// A Loader reads the values of keys from the store of record. It leaves keys
// that do not exist out of the map. It must see everything committed before it
// was called. It may be called by several goroutines at once.
type Loader[K comparable, V any] func(ctx context.Context, keys []K) (map[K]V, error)

// Cache reads objects through memcached. It is safe for concurrent use. It has
// nothing to close: the client belongs to the caller.
type Cache[K comparable, V any] struct {
	mc   *memcache.Client
	load Loader[K, V]
	cfg  Config[K, V]

	mu    sync.Mutex
	stats Stats
}

// New returns a cache in front of load. It does not talk to memcached. Set
// MaxIdleConns of mc above the number of parallel requests, or most requests
// dial, and its Timeout to what a read may wait for a server that hangs.
func New[K comparable, V any](mc *memcache.Client, load Loader[K, V], cfg Config[K, V]) (*Cache[K, V], error) {
	if mc == nil {
		return nil, errors.New("lookaside: the client is nil")
	}
	if load == nil {
		return nil, errors.New("lookaside: the Loader is nil")
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Cache[K, V]{mc: mc, load: load, cfg: cfg}, nil
}

// Get returns the value of k, or ErrNotFound.
func (c *Cache[K, V]) Get(ctx context.Context, k K) (V, error) {
	found, err := c.fetch(ctx, []K{k})
	v, ok := found[k]
	switch {
	case err != nil:
		return v, fmt.Errorf("lookaside: get %s: %w", c.cfg.itemKey(k), err)
	case !ok:
		return v, ErrNotFound
	}
	return v, nil
}

// GetMulti returns the values of keys; keys that the Loader does not have are
// left out. When the Loader fails or ctx ends, it returns what it has so far and
// an error.
func (c *Cache[K, V]) GetMulti(ctx context.Context, keys ...K) (map[K]V, error) {
	found, err := c.fetch(ctx, keys)
	if err != nil {
		return found, fmt.Errorf("lookaside: get %d keys: %w", len(keys), err)
	}
	return found, nil
}

// Invalidate ends the life of what is cached under keys: values, leases, and
// the knowledge that a key does not exist. Call it after the commit of every
// insert, update and delete, with a context that does not end with the request.
// After an error some keys may be deleted, and all of them may be repeated.
func (c *Cache[K, V]) Invalidate(ctx context.Context, keys ...K) error {
	errs := make([]error, len(keys))
	each(len(keys), func(i int) {
		key := c.cfg.itemKey(keys[i])
		err := ctx.Err()
		if err == nil {
			err = c.mc.Delete(key)
		}
		switch {
		case err == nil, errors.Is(err, memcache.ErrCacheMiss):
			c.count(&c.stats.Invalidations, 1)
		default:
			c.count(&c.stats.Errors, 1)
			errs[i] = fmt.Errorf("lookaside: invalidate %s: %w", key, err)
		}
	})
	return errors.Join(errs...)
}

// Stats are counts since the cache was made. All but Loads and Errors count
// keys.
type Stats struct {
	Hits          int64 // values found
	NegativeHits  int64 // found that the key does not exist
	Misses        int64 // found nothing, or something foreign
	Leases        int64 // won the right to fill
	Waits         int64 // found a lease of another reader, and waited
	WaitTimeouts  int64 // waited in vain, and loaded without storing
	Fills         int64 // stored what was loaded
	FillsRefused  int64 // not stored: invalidated or evicted during the load
	FillsSkipped  int64 // not stored: over 1 MB, or Marshal failed
	Loads         int64 // calls of the Loader
	LoadedKeys    int64 // keys asked of the Loader
	Invalidations int64 // keys deleted by Invalidate, or found absent
	Errors        int64 // requests to memcached that failed, or came after their context
}

// Stats returns the counts so far.
func (c *Cache[K, V]) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// count adds to one of the fields of c.stats.
func (c *Cache[K, V]) count(field *int64, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*field += int64(n)
}

// pause waits before the next look at the lease of another reader: delay to
// twice delay, but not past deadline.
func pause(ctx context.Context, delay time.Duration, deadline time.Time) error {
	t := time.NewTimer(min(delay+rand.N(delay), time.Until(deadline)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
