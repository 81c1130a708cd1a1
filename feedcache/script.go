package feedcache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// serverLua is the incarnation of the server a script runs on: the first half
// of its replication ID, which a server draws when it starts and when it
// becomes a primary. Zeros are for those without one, and for replicas, which
// have that of their primary and may lag.
const serverLua = `
local info = redis.call('INFO', 'replication')
local server = string.find(info, 'role:master', 1, true) and string.match(info, 'master_replid:(%x+)') or ''
server = string.sub(server, 1, 16)
server = server .. string.rep('0', 16 - #server)
`

// serverScript returns the incarnation of the server that has KEYS[1].
var serverScript = redis.NewScript(serverLua + `return server`)

// leaseScript puts a feed in state B at a key that is free, or holds something
// else than a feed, or the feed that starts with ARGV[1]. It returns the
// incarnation of the server, or nothing if somebody else has been faster. It
// may be repeated, as the client does after an answer that was lost.
// ARGV[2] and ARGV[3] are the header before and after the incarnation, ARGV[4]
// is the TTL in milliseconds. On a server without room the RPUSH is refused only
// if nothing was written before it.
var leaseScript = redis.NewScript(`
local h = redis.pcall('LINDEX', KEYS[1], 1)
if type(h) == 'string' and string.sub(h, 1, 8) == string.sub(ARGV[2], 1, 8) then return string.sub(h, 25, 40) end
if type(h) == 'string' and string.find(h, '^\252[BL]') and string.sub(h, 1, 8) ~= ARGV[1] then return false end
` + serverLua + `
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('UNLINK', KEYS[1]) end
redis.call('RPUSH', KEYS[1], '', ARGV[2] .. server .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return server`)

// swapScript replaces the first ARGV[2] elements of a feed, if it still starts
// with ARGV[1], by ARGV[5] and ARGV[4]; without ARGV[5] the first element
// stays. In between a feed only grows, so what the caller has not seen is
// exactly what follows those elements. ARGV[3] is the TTL in milliseconds, or 0
// to keep the one there is. LSET comes first: it is what a server without room
// refuses, and nothing has changed by then.
var swapScript = redis.NewScript(`
local h = redis.pcall('LINDEX', KEYS[1], 1)
if type(h) ~= 'string' or string.sub(h, 1, 8) ~= ARGV[1] then return 0 end
local unseen = redis.call('LRANGE', KEYS[1], ARGV[2], -1)
redis.call('LSET', KEYS[1], 1, ARGV[4])
if ARGV[5] then redis.call('LSET', KEYS[1], 0, ARGV[5]) end
redis.call('LTRIM', KEYS[1], 0, 1)
for i = 1, #unseen, 1000 do
  redis.call('RPUSH', KEYS[1], unpack(unseen, i, math.min(i + 999, #unseen)))
end
if ARGV[3] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1`)

// A call is one run of a script on one key.
type call struct {
	key  string
	args []any
}

// swap returns the call of swapScript that puts v, ready and under a new
// generation, in the place of what its reader saw. The deadline is set with
// the TTL.
func (f *Feeds) swap(key string, v view, ttl time.Duration) call {
	seen, tag := v.seenLen, v.tag
	v.tag = newTag(ready)
	if ttl > 0 {
		v.deadline = f.cfg.Now().Add(ttl).UnixMilli()
	}
	rest, head := v.encode(f.headIDs())
	args := []any{tag, seen, ttl.Milliseconds(), head, rest}
	if !v.whole {
		args = args[:4]
	}
	return call{key, args}
}

// run makes the calls in one round trip. Where a server does not know the
// script (it restarted, a replica took over, SCRIPT FLUSH) a second round trip
// carries the text, which needs no step that loads it on every node first.
func (f *Feeds) run(ctx context.Context, s *redis.Script, calls []call) []*redis.Cmd {
	cmds := make([]*redis.Cmd, len(calls))
	known := f.rdb.Pipeline()
	for i, c := range calls {
		cmds[i] = s.EvalSha(ctx, known, []string{c.key}, c.args...)
	}
	exec(ctx, known)
	f.runUnknown(ctx, s, calls, cmds)
	return cmds
}

func (f *Feeds) runUnknown(ctx context.Context, s *redis.Script, calls []call, cmds []*redis.Cmd) {
	unknown := f.rdb.Pipeline()
	for i, c := range calls {
		if redis.HasErrorPrefix(cmds[i].Err(), "NOSCRIPT") {
			cmds[i] = s.Eval(ctx, unknown, []string{c.key}, c.args...)
		}
	}
	exec(ctx, unknown)
}

// unlink removes the keys and returns the indices of those it could not, and
// one of the errors.
func (f *Feeds) unlink(ctx context.Context, keys []string) (failed []int, err error) {
	pipe := f.rdb.Pipeline()
	cmds := make([]*redis.IntCmd, len(keys))
	for i, key := range keys {
		cmds[i] = pipe.Unlink(ctx, key)
	}
	exec(ctx, pipe)
	for i, cmd := range cmds {
		if cmd.Err() != nil {
			failed, err = append(failed, i), because(ctx, cmd.Err())
		}
	}
	return failed, err
}

// exec sends what the pipeline holds. Its error is that of one of the
// commands, which all keep their own.
func exec(ctx context.Context, pipe redis.Pipeliner) {
	if pipe.Len() > 0 {
		_, _ = pipe.Exec(ctx)
	}
}

// isFailure tells an error of Redis from its word that a key holds something
// else than a list, and so no feed.
func isFailure(err error) bool { return err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") }

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
	if err == nil {
		return nil
	}
	if cause := ended(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
