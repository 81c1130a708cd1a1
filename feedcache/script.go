package feedcache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// pushScript appends ARGV[1] to a feed and returns its new length, or -1 if
// there is no feed. It looks at the header, not only whether the key exists,
// so that it never extends a value that is not a feed.
var pushScript = redis.NewScript(`
local h = redis.pcall('GETRANGE', KEYS[1], 0, 1)
if h ~= '\252B' and h ~= '\252R' then return -1 end
return redis.call('APPEND', KEYS[1], ARGV[1])`)

// swapScript replaces the first ARGV[2] bytes of a feed with ARGV[3], if it
// still starts with ARGV[1]. In between a feed only grows, so what the caller
// has not seen is exactly what follows those bytes. ARGV[4] is the TTL in
// milliseconds, or 0 to keep the one there is.
var swapScript = redis.NewScript(`
if redis.pcall('GETRANGE', KEYS[1], 0, 7) ~= ARGV[1] then return 0 end
local v = ARGV[3] .. redis.call('GETRANGE', KEYS[1], ARGV[2], -1)
if ARGV[4] == '0' then
  redis.call('SET', KEYS[1], v, 'KEEPTTL')
else
  redis.call('SET', KEYS[1], v, 'PX', ARGV[4])
end
return 1`)

// A call is one run of a script on one key.
type call struct {
	key  string
	args []any
}

// swap returns the call of swapScript that puts l, ready and under a new
// generation, in the place of the first seen bytes.
func (f *Feeds) swap(key, tag string, seen int, l opLog, ttl time.Duration) call {
	return call{key, []any{tag, seen, l.encode(newTag(ready)), ttl.Milliseconds()}}
}

// run makes the calls in one round trip. Where a server does not know the
// script (it restarted, a replica took over, SCRIPT FLUSH) a second round trip
// carries the text, which needs no step that loads it on every node first.
func (f *Feeds) run(ctx context.Context, s *redis.Script, calls []call) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	known, unknown := f.rdb.Pipeline(), f.rdb.Pipeline()
	for i, c := range calls {
		cmds[i] = s.EvalSha(ctx, known, []string{c.key}, c.args...)
	}
	exec(ctx, known)
	for i, c := range calls {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			cmds[i] = s.Eval(ctx, unknown, []string{c.key}, c.args...)
		}
	}
	exec(ctx, unknown)
	return cmds
}

// get returns the value of a key and the time it has left to live. The error
// is redis.Nil if there is none.
func (f *Feeds) get(ctx context.Context, key string) ([]byte, time.Duration, error) {
	pipe := f.rdb.Pipeline()
	value, left := pipe.Get(ctx, key), pipe.PTTL(ctx, key)
	exec(ctx, pipe)
	b, err := value.Bytes()
	return b, left.Val(), err
}

// getMulti returns the values of the keys, nil for those it could not get. It
// is a pipeline, as MGET takes keys of one slot only in Redis Cluster.
func (f *Feeds) getMulti(ctx context.Context, keys []string) [][]byte {
	pipe := f.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(keys))
	for i, key := range keys {
		cmds[i] = pipe.Get(ctx, key)
	}
	exec(ctx, pipe)
	values := make([][]byte, len(keys))
	for i, cmd := range cmds {
		values[i], _ = cmd.Bytes()
	}
	return values
}

// drop removes the keys.
func (f *Feeds) drop(ctx context.Context, keys []string) error {
	for keys := range slices.Chunk(keys, maxWindow) {
		pipe := f.rdb.Pipeline()
		cmds := make([]*redis.IntCmd, len(keys))
		for i, key := range keys {
			cmds[i] = pipe.Unlink(ctx, key)
		}
		exec(ctx, pipe)
		for i, cmd := range cmds {
			if err := cmd.Err(); err != nil {
				return fmt.Errorf("feedcache: drop %s: %w", keys[i], because(ctx, err))
			}
		}
	}
	return nil
}

// exec sends what the pipeline holds. Its error is that of one of the
// commands, which all keep their own.
func exec(ctx context.Context, pipe redis.Pipeliner) {
	if pipe.Len() > 0 {
		_, _ = pipe.Exec(ctx)
	}
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
