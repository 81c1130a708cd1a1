package lookaside

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// The flags of an item are one of these. The low bits make a match by chance
// with items of other programs unlikely; the high ones are the state.
const (
	flagValue    uint32 = 0x10<<24 | 0x5347
	flagNegative uint32 = 0x20<<24 | 0x5347
	flagLease    uint32 = 0x40<<24 | 0x5347
)

const (
	parallel = 8 // requests of one call at a time

	// maxItem leaves room for the item's header in memcached's stock limit of
	// 1 MB. A larger one would cost the connection.
	maxItem = 1<<20 - 512
)

// lookup is one key on its way through fetch.
type lookup[K comparable] struct {
	k     K
	key   string
	item  *memcache.Item // as last read; nil if there was none
	state lookupState
}

type lookupState int

const (
	missing lookupState = iota // nothing usable in memcached
	leased                     // another reader holds the lease
	won                        // this call holds the lease; item is its token
	bypass                     // to be loaded, but not stored
)

// fetch answers keys from memcached, from its own loads, and by waiting for
// those of others. It never waits while it holds a lease, so two calls cannot
// wait for each other.
func (c *Cache[K, V]) fetch(ctx context.Context, keys []K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	open := make([]*lookup[K], 0, len(keys))
	seen := make(map[K]bool, len(keys))
	for _, k := range keys {
		if !seen[k] {
			seen[k] = true
			open = append(open, &lookup[K]{k: k, key: c.cfg.itemKey(k)})
		}
	}
	deadline := time.Now().Add(c.cfg.MaxWait)
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 64*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return found, err
		}
		open = c.read(open, found)
		c.acquire(open)
		late := !time.Now().Before(deadline)
		var load, wait []*lookup[K]
		for _, l := range open {
			if l.state == leased && !late {
				wait = append(wait, l)
				continue
			}
			if l.state == leased {
				l.state = bypass
				c.count(&c.stats.WaitTimeouts, 1)
			}
			load = append(load, l)
		}
		if err := c.fill(ctx, load, found); err != nil {
			return found, err
		}
		if len(wait) == 0 {
			return found, nil
		}
		c.count(&c.stats.Waits, len(wait))
		if err := pause(ctx, delay, deadline); err != nil {
			return found, err
		}
		open = wait
	}
}

// read looks all of open up and returns those that memcached does not answer.
func (c *Cache[K, V]) read(open []*lookup[K], found map[K]V) []*lookup[K] {
	keys := make([]string, len(open))
	for i, l := range open {
		keys[i] = l.key
	}
	items, err := c.getMulti(keys)
	var rest []*lookup[K]
	for _, l := range open {
		l.item = items[l.key]
		switch {
		case l.item == nil && err != nil:
			// The error may be another server's, but asking again would cost
			// a hanging server's timeout again.
			l.state = bypass
		case l.item == nil:
			l.state = missing
			c.count(&c.stats.Misses, 1)
		case l.item.Flags == flagLease:
			l.state = leased
		case l.item.Flags == flagNegative:
			c.count(&c.stats.NegativeHits, 1)
			continue
		case l.item.Flags == flagValue:
			v, err := c.cfg.Unmarshal(l.item.Value)
			if err == nil {
				found[l.k] = v
				c.count(&c.stats.Hits, 1)
				continue
			}
			fallthrough
		default:
			l.state = missing
			c.count(&c.stats.Misses, 1)
		}
		rest = append(rest, l)
	}
	return rest
}

// acquire tries to turn every missing lookup into a won one.
func (c *Cache[K, V]) acquire(open []*lookup[K]) {
	var tries []*lookup[K]
	for _, l := range open {
		if l.state == missing {
			tries = append(tries, l)
		}
	}
	tokens := make([]string, len(tries))
	each(len(tries), func(i int) {
		tokens[i] = rand.Text()
		tries[i].state = c.stake(tries[i], tokens[i])
	})
	keys := make([]string, 0, len(tries))
	for _, l := range tries {
		if l.state == won {
			keys = append(keys, l.key)
		}
	}
	// A lease needs its CAS id, which only a read returns. If the token is not
	// there any more, an invalidation came in between.
	items, _ := c.getMulti(keys)
	for i, l := range tries {
		if l.state != won {
			continue
		}
		l.item = items[l.key]
		if l.item == nil || l.item.Flags != flagLease || string(l.item.Value) != tokens[i] {
			l.state = bypass
			continue
		}
		c.count(&c.stats.Leases, 1)
	}
}

// stake stores token as a lease where l saw nothing, or something unusable.
func (c *Cache[K, V]) stake(l *lookup[K], token string) lookupState {
	lease := &memcache.Item{
		Key:        l.key,
		Value:      []byte(token),
		Flags:      flagLease,
		Expiration: seconds(c.cfg.LeaseTTL),
	}
	var err error
	if l.item == nil {
		err = c.mc.Add(lease)
	} else {
		lease.CasID = l.item.CasID
		err = c.mc.CompareAndSwap(lease)
	}
	switch {
	case err == nil:
		return won
	case refused(err):
		return leased // or filled, or deleted: the next read tells
	}
	c.count(&c.stats.Errors, 1)
	return bypass
}

// fill loads all of open, adds what there is to found, and stores it where this
// call holds the lease.
func (c *Cache[K, V]) fill(ctx context.Context, open []*lookup[K], found map[K]V) error {
	if len(open) == 0 {
		return nil
	}
	keys := make([]K, len(open))
	for i, l := range open {
		keys[i] = l.k
	}
	c.count(&c.stats.Loads, 1)
	c.count(&c.stats.LoadedKeys, len(keys))
	loaded := false
	defer func() { // also when the Loader panics
		if !loaded {
			c.eachWon(open, c.release)
		}
	}()
	values, err := c.load(ctx, keys)
	if err != nil {
		return err
	}
	loaded = true
	c.eachWon(open, func(l *lookup[K]) {
		v, ok := values[l.k]
		c.store(l, v, ok)
	})
	for _, k := range keys {
		if v, ok := values[k]; ok {
			found[k] = v
		}
	}
	return nil
}

// eachWon calls f for the lookups whose lease this call holds.
func (c *Cache[K, V]) eachWon(open []*lookup[K], f func(*lookup[K])) {
	each(len(open), func(i int) {
		if open[i].state == won {
			f(open[i])
		}
	})
}

// store replaces the lease of l by v, or by the news that there is no value.
func (c *Cache[K, V]) store(l *lookup[K], v V, exists bool) {
	item := &memcache.Item{Key: l.key, CasID: l.item.CasID}
	if exists {
		data, err := c.cfg.Marshal(v)
		if err != nil || len(l.key)+len(data) > maxItem {
			c.count(&c.stats.FillsSkipped, 1)
			c.release(l)
			return
		}
		item.Value, item.Flags, item.Expiration = data, flagValue, seconds(jitter(c.cfg.TTL))
	} else {
		item.Flags, item.Expiration = flagNegative, seconds(jitter(c.cfg.NegativeTTL))
	}
	switch err := c.mc.CompareAndSwap(item); {
	case err == nil:
		c.count(&c.stats.Fills, 1)
	case refused(err):
		c.count(&c.stats.FillsRefused, 1)
	default:
		c.count(&c.stats.Errors, 1)
	}
}

// release gives a lease back, so that nobody waits for it. A negative expiration
// makes the swap a deletion, and thus the only conditional one there is.
func (c *Cache[K, V]) release(l *lookup[K]) {
	err := c.mc.CompareAndSwap(&memcache.Item{Key: l.key, CasID: l.item.CasID, Expiration: -1})
	if err != nil && !refused(err) {
		c.count(&c.stats.Errors, 1)
	}
}

func (c *Cache[K, V]) getMulti(keys []string) (map[string]*memcache.Item, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	items, err := c.mc.GetMulti(keys)
	if err != nil {
		c.count(&c.stats.Errors, 1)
	}
	return items, err
}

// refused reports whether a conditional write met another item than it expected,
// or none. Which of the errors comes depends on what happened to the item.
func refused(err error) bool {
	return errors.Is(err, memcache.ErrNotStored) ||
		errors.Is(err, memcache.ErrCASConflict) ||
		errors.Is(err, memcache.ErrCacheMiss)
}

// each calls f for 0 to n-1, a few at a time, and waits for all.
func each(n int, f func(i int)) {
	if n == 1 {
		f(0)
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, parallel) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
