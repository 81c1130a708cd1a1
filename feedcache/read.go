package feedcache

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// A reader that finds a lease of somebody else looks again after these waits,
// 155 ms in all, then takes its page from the Source.
const (
	firstWait = 5 * time.Millisecond
	lastWait  = 80 * time.Millisecond
)

// A glance is what a reader found at a key.
type glance struct {
	view view
	is   presence
}

type presence int

const (
	away   presence = iota // Redis did not answer
	cold                   // no feed, or one that may have lost pushes
	leased                 // somebody fills it
	warm
)

// glance looks at the feeds of the owners in one round trip, and a second one
// if it does not know which server has them.
func (f *Feeds) glance(ctx context.Context, owners []int64, whole bool) []glance {
	start := int64(1)
	if whole {
		start = 0
	}
	var (
		pipe    = f.rdb.Pipeline()
		lists   = make([]*redis.StringSliceCmd, len(owners)) // nil for a server that is left alone
		addrs   = make([]string, len(owners))
		calls   []call
		asked   []string
		answers []*redis.Cmd
		begin   = time.Now()
	)
	for i, owner := range owners {
		key := f.key(owner)
		addrs[i] = f.addr(ctx, key)
		if j := slices.Index(addrs[:i], addrs[i]); j >= 0 && lists[j] == nil ||
			j < 0 && f.breaker.open(addrs[i], f.cfg.RetryAfter) {
			continue
		}
		if _, ok := f.servers.fresh(addrs[i], f.cfg.FailoverCheck); !ok && (i == 0 || addrs[i] != addrs[i-1]) {
			calls, asked = append(calls, call{key: key}), append(asked, addrs[i])
			answers = append(answers, serverScript.EvalSha(ctx, pipe, []string{key}))
		}
		lists[i] = pipe.LRange(ctx, key, start, -1)
	}
	exec(ctx, pipe)
	f.runUnknown(ctx, serverScript, calls, answers)
	for i, answer := range answers {
		if server, err := answer.Text(); err == nil {
			f.servers.saw(asked[i], server, begin)
		}
	}

	found := make([]glance, len(owners))
	var doubts []int
	for i, cmd := range lists {
		if cmd == nil {
			f.note(Event{Kind: RedisFailure, Owner: owners[i], Err: errAway})
			continue
		}
		list, err := cmd.Result()
		f.breaker.note(addrs[i], begin, because(ctx, err), f.cfg.RetryAfter)
		if isFailure(err) {
			f.note(Event{Kind: RedisFailure, Owner: owners[i], Err: because(ctx, err)})
			continue
		}
		v, ok := parse(list, whole)
		found[i] = glance{v, cold}
		if !ok {
			continue
		}
		if found[i].is = leased; v.state() == ready {
			found[i].is = warm
		}
		if server, ok := f.servers.fresh(addrs[i], f.cfg.FailoverCheck); !ok || server != v.server {
			doubts = append(doubts, i)
		}
	}
	f.verify(ctx, owners, addrs, found, doubts)
	return found
}

// verify asks the servers themselves which incarnation they are, and takes
// feeds that are of another one for cold.
func (f *Feeds) verify(ctx context.Context, owners []int64, addrs []string, found []glance, doubts []int) {
	if len(doubts) == 0 {
		return
	}
	calls := make([]call, len(doubts))
	for j, i := range doubts {
		calls[j] = call{key: f.key(owners[i])}
	}
	begin := time.Now()
	for j, answer := range f.run(ctx, serverScript, calls) {
		i := doubts[j]
		server, err := answer.Text()
		switch {
		case err != nil:
			found[i] = glance{}
			f.note(Event{Kind: RedisFailure, Owner: owners[i], Err: fmt.Errorf("asking the server for its replication ID: %w", because(ctx, err))})
		case server != found[i].view.server:
			found[i].is = cold
			fallthrough
		default:
			f.servers.saw(addrs[i], server, begin)
		}
	}
}

// feed returns a view of the owner's feed, which it fills from the Source if
// nobody has, or nothing if there is none to be had. Its errors are those of
// the Source.
func (f *Feeds) feed(ctx context.Context, owner int64, whole bool) (view, error) {
	return f.settle(ctx, owner, whole, f.glance(ctx, []int64{owner}, whole)[0])
}

// settle is feed, after a first glance. It waits for another reader's fill: to
// its end, if that is in this process, and else for 155 ms.
func (f *Feeds) settle(ctx context.Context, owner int64, whole bool, g glance) (view, error) {
	joined, wait := false, firstWait
	for {
		switch g.is {
		case away:
			return nothing, nil
		case warm:
			f.renew(ctx, owner, g.view)
			return g.view, nil
		case cold:
			var err error
			if g, err = f.lease(ctx, owner, g.view.tag); err != nil {
				return view{}, err
			}
			if g.is != leased {
				return g.view, nil
			}
		}
		last := false
		switch done := f.fills.done(owner); {
		case done != nil && !joined:
			f.note(Event{Kind: Wait, Owner: owner})
			joined = true // once: of a Source that fails each has its own try
			select {
			case <-done:
			case <-ctx.Done():
			}
		case wait <= lastWait:
			f.note(Event{Kind: Wait, Owner: owner})
			sleep(ctx, wait)
			wait *= 2
		default:
			// The feed may be there by the time the Source has room.
			leave, err := f.enter(ctx)
			if err != nil {
				return view{}, err
			}
			leave()
			last = true
		}
		if err := ended(ctx); err != nil {
			return view{}, err
		}
		if g = f.glance(ctx, []int64{owner}, whole)[0]; last && g.is != warm {
			return nothing, nil
		}
	}
}

// renew prolongs the life of a feed that is read, when half of it is over. A
// plain EXPIRE could hit the lease of a feed that was evicted just now, and the
// lease of a reader that died would last for the whole TTL.
func (f *Feeds) renew(ctx context.Context, owner int64, v view) {
	if time.UnixMilli(v.deadline).Sub(f.cfg.Now()) >= f.cfg.TTL/2 {
		return
	}
	if v.deep { // it would lose ops
		g := f.glance(ctx, []int64{owner}, true)[0]
		if g.is != warm {
			return
		}
		v = g.view
	}
	f.run(ctx, swapScript, []call{f.swap(f.key(owner), f.fit(v), f.cfg.TTL)})
}

// sleep waits for d, or until ctx ends, and reports whether ctx lasted as long.
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
