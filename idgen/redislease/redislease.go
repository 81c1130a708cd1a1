// Package redislease keeps the shard numbers of [idgen.Open] and their marks in
// Redis, for programs that have Redis and no PostgreSQL.
//
// # Problem
//
// Processes that come and go on many machines need worker numbers that no two
// use at a time, and a process that takes over a number must begin above all
// IDs made with it before. A key with a TTL gives neither: its holder may sleep
// past the TTL and wake up, and what it had made is forgotten with the key.
//
// # Scheme
//
// Two keys hold all numbers of a prefix. Neither has a TTL.
//
//	{idgen}:lease    hash         number → mark, token, layout
//	                              7 → "40021190112346111 K4…Q 41/13/10 since 2026-…"
//	                              unused → all numbers below have been used
//
//	{idgen}:expiry   sorted set   number → when a claim of any number may take it,
//	                              in milliseconds since 1970 by the clock of Redis,
//	                              or itself, when that has been seen to be past
//
// A mark is an ID in decimal; a token is 130 random bits, new at every write.
//
//   - A claim writes a new token beside the mark it finds. By number it does so
//     whoever holds it: the newest wins. [idgen.AnyShard] takes the lowest number
//     that is released or expired, else the lowest never used.
//   - Extend and Release replace the whole record, and only one that is exactly
//     as this holder last wrote it. So a holder that was displaced finds out in
//     the step that would have harmed, and of a virtual machine and its clone the
//     second one does, though both know the same token.
//   - A write whose answer was lost is repeated, word for word, before the next
//     one, until its outcome is known. Redis takes a repetition for what it is,
//     by the token.
//
// Time decides only which number a claim of AnyShard may take. A holder that
// slept past its expiry goes on if nobody took its number, and else gets
// [idgen.ErrLeaseLost].
//
// # Guarantees
//
// Those of [idgen.Open], as long as Redis forgets no write that it acknowledged.
// A claim therefore checks the server once, and returns [ErrNotDurable] unless
// the append-only file is on, is synced before every answer, also during a
// rewrite, and its keys cannot be evicted. Then a crash of Redis or of its machine
// loses nothing. Marks are compared and stored as text, exact up to 2^63-1.
//
// # Non-guarantees
//
// Redis replicates after it answers. A failover to a replica that lags, a restore
// from a backup, FLUSHALL or a lost disk can bring back an old mark, or none. The
// holder then finds another record than its own and gets ErrLeaseLost at its
// next Extend. But until then, for up to [idgen.Config.Window], it makes IDs that
// the next holder of the number may repeat; and when that one's clock is behind,
// it may repeat more, as it begins at the clock or above the old mark.
// [Config.Replicas] makes this rarer and does not end it: a failover can choose a
// replica that was not among those that answered. Keep the marks in PostgreSQL,
// with pglease, where that matters.
//
// # Cost
//
// Claim, Extend and Release are one round trip each: a script that Redis knows
// by its hash. The first claim of a [Store] takes one more for the check, and a
// server that does not know the script, as after a restart, one more for its
// text. After an error Extend and Release take two. Extend sends about 300 bytes.
// A number takes about 230 bytes of Redis's memory, for ever, and a claim of
// AnyShard about 30 µs of its time, however many are held
// (BenchmarkClaimAnyShard, Redis 7.0).
//
// # Failure
//
// All errors of Redis, of the network and of ctx are safe to retry. A claim
// whose answer was lost may leave a number held for [Config.TTL]. Give the client
// short timeouts and few retries, and set ContextTimeoutEnabled, without which
// the deadline of a ctx does not interrupt a command that waits; a ctx that is
// cancelled is noticed when the client's ReadTimeout has passed.
//
// Redis 5 or later is needed; the tests run on 7.0. All keys of a prefix share a
// hash tag, so Redis Cluster works, and so do the clients of Sentinel. A client
// that spreads keys over servers by itself, [redis.Ring], does not.
//
// # Source
//
// C. Gray and D. Cheriton, "Leases: An Efficient Fault-Tolerant Mechanism for
// Distributed File Cache Consistency", SOSP 1989, for the lease; the token is the
// fencing of M. Kleppmann, "How to do distributed locking", 2016, checked by the
// store of the marks itself.
package redislease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/idgen"
)

// Config says where and how the numbers are kept. The zero Config works.
type Config struct {
	// Prefix begins both keys, in braces. It tells the numbers of several
	// independent kinds of IDs apart. It must not contain braces. Default:
	// "idgen".
	Prefix string

	// TTL is how long a number that is not extended stays out of reach of
	// claims of idgen.AnyShard, by the clock of Redis. A generator extends every
	// third of [idgen.Config.Window], so keep it well above that. No ID is
	// repeated because it is short. Default: 30 s; at least 1 s.
	TTL time.Duration

	// Replicas is how many replicas must have received a mark before it is
	// used; that takes WAIT, which the server must allow. When they do not answer
	// within a second, or half of what ctx leaves, Extend returns an error, and a
	// retry is safe. Default: 0.
	Replicas int

	// AssumeDurable takes it on trust that the server forgets no write that it
	// acknowledged, without a check: for services that hide their settings and
	// promise this, such as Amazon MemoryDB. Default: false.
	AssumeDurable bool
}

// Store is an [idgen.Leases]. It is safe for concurrent use, and has nothing to
// close.
type Store struct {
	rdb     redis.UniversalClient
	cfg     Config
	keys    []string
	durable atomic.Bool // the server has passed the check
}

var _ idgen.Leases = (*Store)(nil)

// New returns the numbers that rdb holds under a prefix. It does not dial.
func New(rdb redis.UniversalClient, cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = "idgen"
	}
	if cfg.TTL == 0 {
		cfg.TTL = 30 * time.Second
	}
	_, ring := rdb.(*redis.Ring)
	switch {
	case rdb == nil:
		return nil, errors.New("redislease: the client is nil")
	case ring:
		// When a server is down a Ring goes on with another, which has no marks.
		return nil, errors.New("redislease: the client is a Ring: want one whose keys have one place")
	case strings.ContainsAny(cfg.Prefix, "{}"):
		return nil, fmt.Errorf("redislease: Config.Prefix is %q: want no braces", cfg.Prefix)
	case cfg.TTL < time.Second:
		return nil, fmt.Errorf("redislease: Config.TTL is %v: want 1s or more", cfg.TTL)
	case cfg.Replicas < 0:
		return nil, fmt.Errorf("redislease: Config.Replicas is %d: want 0 or more", cfg.Replicas)
	}
	tag := "{" + cfg.Prefix + "}"
	return &Store{rdb: rdb, cfg: cfg, keys: []string{tag + ":lease", tag + ":expiry"}}, nil
}

// claimScript makes the caller the holder of the number ARGV[1], or of the
// lowest free one up to ARGV[2] if that is -1, with the token ARGV[3], the
// layout ARGV[4] and a TTL of ARGV[5] milliseconds. It returns the number and
// its record, which is the old one and not changed if that is not of this
// layout; or nil if all are held.
//
// What has expired gets the number itself as its score, which is below every
// moment and sorts. A number once used stays so, and the search for one never
// used goes on where the last one ended. Marks stay text: Lua's numbers are
// doubles.
var claimScript = redis.NewScript(`
local lease, expiry = KEYS[1], KEYS[2]
local n, max, token, layout = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if n == '-1' then
  for _, expired in ipairs(redis.call('ZRANGEBYSCORE', expiry, '(' .. max, now)) do
    redis.call('ZADD', expiry, expired, expired)
  end
  n = redis.call('ZRANGEBYSCORE', expiry, 0, max, 'LIMIT', 0, 1)[1]
  if not n then
    n = tonumber(redis.call('HGET', lease, 'unused') or 0)
    while redis.call('HEXISTS', lease, n) == 1 do n = n + 1 end
    if n > max then return false end
    redis.call('HSET', lease, 'unused', n + 1)
  end
end
local record, mark = redis.call('HGET', lease, n), '0'
if record then
  local found
  mark, found = string.match(record, '^(%d+) %w+ (.+)$')
  if found ~= layout then return {tonumber(n), record} end
end
record = mark .. ' ' .. token .. ' ' .. layout
redis.call('HSET', lease, n, record)
redis.call('ZADD', expiry, now + ARGV[5], n)
return {tonumber(n), record}`)

// swapScript replaces the record ARGV[2] of the number ARGV[1] with ARGV[3],
// which expires in ARGV[4] milliseconds; a number that is released does at once.
// It returns 0 if there is another record. One that is the new record already
// was written by this call when it was made before. It is written again, so that
// a WAIT behind it has something to wait for: the client may have repeated the
// call over another connection.
var swapScript = redis.NewScript(`
local lease, expiry, n = KEYS[1], KEYS[2], ARGV[1]
local record = redis.call('HGET', lease, n)
if record ~= ARGV[2] and record ~= ARGV[3] then return 0 end
redis.call('HSET', lease, n, ARGV[3])
local time = redis.call('TIME')
redis.call('ZADD', expiry, time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], n)
return 1`)

// Claim makes the caller the holder of a shard number, whoever holds it; or with
// [idgen.AnyShard] of the lowest that is released or expired, else the lowest
// never used. It returns [idgen.ErrHeld] if there is none, and [ErrNotDurable] if
// the server may forget marks.
func (s *Store) Claim(ctx context.Context, shard int, layout idgen.Layout) (idgen.Lease, error) {
	l, err := s.claim(ctx, shard, layout)
	if err != nil {
		number := "any"
		if shard != idgen.AnyShard {
			number = strconv.Itoa(shard)
		}
		return nil, fmt.Errorf("redislease: claim %s[%s]: %w", s.cfg.Prefix, number, because(ctx, err))
	}
	return l, nil
}

func (s *Store) claim(ctx context.Context, shard int, layout idgen.Layout) (*lease, error) {
	if err := ended(ctx); err != nil {
		return nil, err
	}
	if shard < idgen.AnyShard || shard > layout.MaxShard() {
		return nil, fmt.Errorf("want idgen.AnyShard, or 0 to %d", layout.MaxShard())
	}
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	token := rand.Text()
	reply, err := claimScript.Run(ctx, s.rdb, s.keys,
		shard, layout.MaxShard(), token, layout.String(), s.cfg.TTL.Milliseconds()).Slice()
	switch {
	case errors.Is(err, redis.Nil):
		return nil, idgen.ErrHeld
	case err != nil:
		return nil, err
	}
	if len(reply) != 2 {
		return nil, fmt.Errorf("the script returned %d values, want 2", len(reply))
	}
	number, _ := reply[0].(int64)
	text, _ := reply[1].(string)
	r, err := parseRecord(text)
	switch {
	case err != nil:
		return nil, fmt.Errorf("shard %d: %w", number, err)
	case r.layout != layout.String():
		return nil, fmt.Errorf("shard %d has IDs of layout %q: want %q", number, r.layout, layout)
	case r.token != token:
		return nil, fmt.Errorf("shard %d: the record is of another claim", number)
	}
	return &lease{store: s, shard: int(number), mark: r.mark, stored: r}, nil
}

// swap runs swapScript, and waits for so many replicas to have what it wrote.
func (s *Store) swap(ctx context.Context, shard int, from, to record, ttl time.Duration, replicas int) error {
	var server redis.Cmdable = s.rdb
	if replicas > 0 {
		// WAIT has no key that would take it to the server of the write.
		var err error
		if server, err = s.primary(ctx); err != nil {
			return err
		}
	}
	var swapped, waited *redis.Cmd
	for _, eval := range []func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd{
		swapScript.EvalSha, swapScript.Eval,
	} {
		pipe := server.Pipeline() // one connection, which is what WAIT is about
		swapped = eval(ctx, pipe, s.keys, shard, from.String(), to.String(), ttl.Milliseconds())
		if replicas > 0 {
			waited = pipe.Do(ctx, "wait", replicas, replicaTime(ctx).Milliseconds())
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		if !redis.HasErrorPrefix(swapped.Err(), "NOSCRIPT") {
			break
		}
	}
	done, err := swapped.Bool()
	switch {
	case err != nil:
		if cluster, ok := s.rdb.(*redis.ClusterClient); ok {
			cluster.ReloadState(ctx) // or a retry may go to a server that has died
		}
		return err
	case !done:
		return idgen.ErrLeaseLost
	case replicas == 0:
		return nil
	}
	got, err := waited.Int()
	if err != nil {
		return fmt.Errorf("wait for replicas: %w", err)
	}
	if got < replicas {
		return fmt.Errorf("%d replicas have the mark: want %d", got, replicas)
	}
	return nil
}

// replicaTime is how long WAIT may take: 0 would be for ever. It leaves time for
// the answer, which says more than the end of ctx.
func replicaTime(ctx context.Context) time.Duration {
	d := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline)/2)
	}
	return max(d, time.Millisecond)
}

// primary returns the one server that has the keys.
func (s *Store) primary(ctx context.Context) (redis.Cmdable, error) {
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return s.rdb, nil
	}
	return cluster.MasterForKey(ctx, s.keys[0])
}

// ended returns why ctx has ended, or nil. A socket whose deadline is that of
// ctx can time out a moment before ctx.Err knows.
func ended(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && ctx.Err() == nil && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// because makes the end of ctx part of err: a driver that is cut short may
// report a plain I/O timeout.
func because(ctx context.Context, err error) error {
	if cause := ended(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
