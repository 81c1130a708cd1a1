package hashkv

import (
	"context"
	"crypto/rand"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// limits are those of the server that allows the least.
type limits struct {
	entries, bytes node
	tried          bool // found out by trying, as no server told
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

	// What they are on a stock server; maxBytes is the other.
	stockEntries = 512
)

// readLimits asks the servers up to what size they keep a hash compact, and
// tries it where they do not tell.
func readLimits(ctx context.Context, rdb redis.UniversalClient, prefix string) (limits, error) {
	least := limits{
		entries: node{setting: entriesSetting, value: math.MaxInt},
		bytes:   node{setting: bytesSetting, value: math.MaxInt},
	}
	keep := func(l *node, addr string, value int) {
		if value < l.value {
			l.addr, l.value = addr, value
		}
	}
	err := onPrimaries(ctx, rdb, func(c redis.UniversalClient, addr string) error {
		found, err := c.ConfigGet(ctx, "hash-max-*").Result()
		if len(found) == 0 && (err == nil || redis.HasErrorPrefix(err, "NOPERM") || redis.HasErrorPrefix(err, "ERR")) {
			least.tried = true
			return nil
		}
		var entries, bytes int
		for name, value := range found {
			// Before Redis 7 a listpack was a ziplist.
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
		return err
	})
	if err != nil || !least.tried {
		return least, err
	}
	// CONFIG is not allowed, as with most who rent out servers. All of those are
	// set alike, so the one that gets our probe answers for all.
	entries, bytes, err := probeLimits(ctx, rdb, prefix)
	if err != nil {
		return limits{}, fmt.Errorf("try %s: %w", entriesSetting, err)
	}
	keep(&least.entries, "the server", entries)
	keep(&least.bytes, "the server", bytes)
	return least, nil
}

// probed bounds what a probe looks for: more does not matter to any map.
const probed = 1024

// probeLimits lets two hashes of its own grow, one by entries and one by the
// length of a value, to see when they leave the compact encoding. They go when
// it is done, or by themselves within a minute.
func probeLimits(ctx context.Context, rdb redis.UniversalClient, prefix string) (entries, bytes int, err error) {
	grow := func(set func(pipe redis.Pipeliner, key string, n int)) int {
		key := prefix + ":probe:" + rand.Text()
		var encodings []*redis.StringCmd
		_, failed := rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for n := range probed {
				set(pipe, key, n+1)
				encodings = append(encodings, pipe.ObjectEncoding(ctx, key))
				if n == 0 {
					pipe.Expire(ctx, key, time.Minute)
				}
			}
			pipe.Del(ctx, key)
			return nil
		})
		if failed != nil {
			err = failed
		}
		large := slices.IndexFunc(encodings, func(cmd *redis.StringCmd) bool { return !compact(cmd.Val()) })
		if large < 0 {
			return probed
		}
		return large
	}
	entries = grow(func(pipe redis.Pipeliner, key string, n int) { pipe.HSet(ctx, key, strconv.Itoa(n), "x") })
	bytes = grow(func(pipe redis.Pipeliner, key string, n int) { pipe.HSet(ctx, key, "x", strings.Repeat("x", n)) })
	return entries, bytes, err
}

// checkEviction returns what is wrong with the servers' eviction policies. INFO
// tells them also to those who may not use CONFIG.
func checkEviction(ctx context.Context, rdb redis.UniversalClient) error {
	var wrong error
	err := onPrimaries(ctx, rdb, func(c redis.UniversalClient, addr string) error {
		info, err := c.Info(ctx, "memory").Result()
		if policy := infoField(info, "maxmemory_policy"); err == nil && policy != "noeviction" {
			wrong = fmt.Errorf("maxmemory-policy of %s is %q: want noeviction, or a full server drops whole buckets, "+
				"or the tombstones of a map that grew", addr, policy)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("maxmemory-policy is not known: %w", err)
	}
	return wrong
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
