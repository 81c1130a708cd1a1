package hashkv

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// limits are those of the server that allows the least.
type limits struct {
	entries, bytes node
	evicts         error // what is wrong with an eviction policy, or nil
}

// A node is what one setting is on one server.
type node struct {
	addr    string
	setting string
	value   int
}

const (
	entriesSetting = "hash-max-listpack-entries"
	bytesSetting   = "hash-max-listpack-value"
)

// readLimits asks the servers up to what size they keep a hash compact, and
// tries it where they do not tell.
func readLimits(ctx context.Context, rdb redis.UniversalClient, prefix string, try bool) (limits, error) {
	least := limits{
		entries: node{setting: entriesSetting, value: math.MaxInt},
		bytes:   node{setting: bytesSetting, value: math.MaxInt},
	}
	keep := func(l *node, addr string, value int) {
		if value < l.value {
			l.addr, l.value = addr, value
		}
	}
	silent := false
	err := onPrimaries(ctx, rdb, func(c redis.UniversalClient, addr string) error {
		found, err := c.ConfigGet(ctx, "hash-max-*").Result()
		if err == nil && len(found) > 0 {
			var entries, bytes int
			// Before Redis 7 a listpack was a ziplist.
			for name, value := range found {
				n, err := strconv.Atoi(value)
				switch {
				case err != nil:
				case strings.HasSuffix(name, "-entries"):
					entries = n
				case strings.HasSuffix(name, "-value"):
					bytes = n
				}
			}
			keep(&least.entries, addr, entries)
			keep(&least.bytes, addr, bytes)
			policy, err := c.ConfigGet(ctx, "maxmemory-policy").Result()
			if name := policy["maxmemory-policy"]; err == nil && strings.HasPrefix(name, "allkeys-") {
				least.evicts = fmt.Errorf("maxmemory-policy of %s is %s: want noeviction, or a full server drops whole buckets", addr, name)
			}
			return nil
		}
		if _, answered := errors.AsType[redis.Error](err); err != nil && !answered {
			return err
		}
		silent = true
		return nil
	})
	if err != nil || !silent || !try {
		return least, err
	}
	// CONFIG is not allowed, as with most who rent out servers. All of those are
	// set alike, so the one that gets our probe answers for all.
	entries, bytes, err := probeLimits(ctx, rdb, prefix)
	if err != nil {
		return limits{}, fmt.Errorf("find out hash-max-listpack-entries: %w", err)
	}
	keep(&least.entries, "the server", entries)
	keep(&least.bytes, "the server", bytes)
	return least, nil
}

// probed bounds what a probe looks for: more does not matter to any map.
const probed = 1024

// probeLimits makes hashes of its own to see when they leave the compact
// encoding. They go when it is done, or by themselves within a minute.
func probeLimits(ctx context.Context, rdb redis.UniversalClient, prefix string) (entries, bytes int, err error) {
	key := prefix + ":probe:" + rand.Text()
	defer func() {
		if failed := rdb.Del(context.WithoutCancel(ctx), key).Err(); err == nil {
			err = failed
		}
	}()
	fits := func(n, size int) bool {
		if err != nil {
			return false
		}
		var encoding *redis.StringCmd
		_, failed := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.Del(ctx, key)
			// Not in one command, which may convert the hash by itself.
			for i := range n {
				pipe.HSet(ctx, key, strconv.Itoa(i), strings.Repeat("x", size))
			}
			pipe.Expire(ctx, key, time.Minute)
			encoding = pipe.ObjectEncoding(ctx, key)
			return nil
		})
		if failed != nil {
			err = failed
		}
		return compact(encoding.Val())
	}
	entries = largest(probed, func(n int) bool { return fits(n, 1) })
	bytes = largest(probed, func(n int) bool { return fits(1, n) })
	return entries, bytes, err
}

// largest returns the largest n up to most for which ok(n), 0 if there is none;
// what is ok for n is ok for less.
func largest(most int, ok func(n int) bool) int {
	if ok(most) {
		return most
	}
	low, high := 0, most // ok, not ok
	for high-low > 1 {
		if mid := (low + high) / 2; ok(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

const (
	// targetFill is the number of entries in a bucket that a map is planned
	// for: fewer cost memory, more cost time.
	targetFill = 128

	// minLevel makes even a small map lie on 256 slots of a cluster, and
	// maxLevel is more than any server has room for.
	minLevel, maxLevel = 8, 40

	// minEntries is the limit below which hashes save nothing.
	minEntries = 16
)

// The number of entries in a bucket has a Poisson distribution. A map is planned
// so that the limit is 6.5 standard deviations above the mean, which one bucket
// in 10^10 passes, and refused from 5.5 on, one in 10^8: the fill of a map is
// known by a sample only.
const planned, tolerated = 6.5, 5.5

// roomFor returns the largest mean fill to plan for under a limit.
func roomFor(limit int) float64 {
	// m + planned sqrt(m) = limit
	root := (math.Sqrt(planned*planned+4*float64(limit)) - planned) / 2
	return root * root
}

// wantFor returns the least limit for a mean fill.
func wantFor(fill float64) int { return int(math.Ceil(fill + tolerated*math.Sqrt(fill))) }

// planLevel returns the log2 of the number of buckets for so many entries: the
// nearest to targetFill, or more buckets if the limit demands it.
func planLevel(entries int64, limit int) int {
	level := int(math.Round(math.Log2(float64(entries) / targetFill)))
	for float64(entries)/math.Exp2(float64(level)) > roomFor(limit) {
		level++
	}
	return min(max(level, minLevel), maxLevel)
}

// chunk returns how many pairs one HSET may bring. From 7.2 on, Redis turns a
// hash into a hash table as soon as one command brings more than the limit, even
// if they repeat what the hash already holds.
func (l limits) chunk() int { return max(1, min(128, l.entries.value)) }

// checkBytes refuses a server on which a field or value of n bytes would turn
// its bucket into a hash table.
func (l limits) checkBytes(n int) *LimitError {
	if l.bytes.value >= n {
		return nil
	}
	return &LimitError{Node: l.bytes.addr, Setting: bytesSetting, Have: l.bytes.value, Want: n}
}

// checkFill refuses a server on which buckets of that mean fill would.
func (l limits) checkFill(fill float64) *LimitError {
	if want := wantFor(max(fill, minEntries/4)); l.entries.value < want {
		return &LimitError{Node: l.entries.addr, Setting: entriesSetting, Have: l.entries.value, Want: want}
	}
	return nil
}
