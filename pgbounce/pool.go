package pgbounce

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A pool is the servers of one database and user. Its lock is held for a few
// instructions at a time, and while it is held no other is taken.
type pool struct {
	b     *Bouncer
	db    *database
	user  string // who clients are
	as    string // who servers log in as
	forDB string // the database's name on the server
	mode  Mode
	// replication, if set, is the startup parameter of its servers, which
	// serve one client each.
	replication string
	stats       stats

	mu      sync.Mutex
	all     []*server
	idle    []*server // the last one was used last
	opening int
	size    atomic.Int32 // all and opening
	first   *client      // the queue of waiters
	last    *client
	waiters int
	nextTry time.Duration // after a failed login
	failure error
	epoch   atomic.Uint64 // RECONNECT closes servers of earlier ones
	welcome *welcome
	greeted chan struct{} // closed when welcome or failure is there
	turn    int           // of the database's hosts
	login   credentials
	closed  bool
}

// take returns an idle server on the client's loop, or puts the client into
// the queue and returns nil.
func (p *pool) take(c *client) *server {
	p.mu.Lock()
	if p.first == nil && !p.db.paused.Load() {
		for len(p.idle) > 0 {
			s := p.popIdleLocked(c.loop)
			if s.shut || s.dead || s.epoch != p.epoch.Load() {
				p.mu.Unlock()
				p.expire(s)
				p.mu.Lock()
				continue
			}
			if s.loop == c.loop {
				s.state = serverActive
				p.mu.Unlock()
				return s
			}
			s.state = serverMoving
			p.enqueueLocked(c)
			p.dequeueLocked(c)
			p.mu.Unlock()
			c.waiter.waiting = true
			c.waiter.pool = p
			from := s.loop
			from.post(func() { p.move(s, c) })
			return nil
		}
	}
	p.enqueueLocked(c)
	p.mu.Unlock()
	c.waiter.waiting, c.waiter.pool = true, p
	p.grow()
	return nil
}

// failing returns an error if there is no server and the last one could not be
// opened, so that nobody waits in vain. It tries again when it is time.
func (p *pool) failing() *wireError {
	p.mu.Lock()
	failed := p.failure != nil && len(p.all) == 0 && !p.db.paused.Load()
	try := failed && !p.closed && p.opening == 0 && p.b.clock() >= p.nextTry
	if try {
		p.opening++
	}
	why := p.failure
	p.mu.Unlock()
	if try {
		p.openCounted(1)
	}
	if !failed {
		return nil
	}
	return fatal("08006", "server login has been failing, try again later (server_login_retry): %s", publicError(why))
}

// popIdleLocked takes the server used last, or in round robin that used first,
// one of the loop's own if there is one nearly as good.
func (p *pool) popIdleLocked(l *loop) *server {
	n := len(p.idle)
	if p.b.config().ServerRoundRobin {
		s := p.idle[0]
		p.idle = slices.Delete(p.idle, 0, 1)
		return s
	}
	for i := n - 1; i >= max(0, n-8); i-- {
		if p.idle[i].loop == l {
			s := p.idle[i]
			p.idle = slices.Delete(p.idle, i, i+1)
			return s
		}
	}
	s := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	return s
}

func (p *pool) enqueueLocked(c *client) {
	w := &c.waiter
	w.prev, w.next, w.queued = p.last, nil, true
	w.since, w.notified = p.b.clock(), false
	if p.last != nil {
		p.last.waiter.next = c
	} else {
		p.first = c
	}
	p.last = c
	p.waiters++
}

func (p *pool) dequeueLocked(c *client) {
	w := &c.waiter
	if w.prev != nil {
		w.prev.waiter.next = w.next
	} else {
		p.first = w.next
	}
	if w.next != nil {
		w.next.waiter.prev = w.prev
	} else {
		p.last = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
	p.waiters--
}

// leave takes a client out of the queue, and tells whether it was in it: if
// not, a server is on its way to it.
func (p *pool) leave(c *client) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.waiter.queued {
		return false
	}
	p.dequeueLocked(c)
	return true
}

// give takes back a server that is as good as new, and hands it to the client
// that has waited for longest. It runs on the server's loop.
func (p *pool) give(s *server) {
	now := s.loop.now
	p.mu.Lock()
	old := s.dead || p.closed || p.replication != "" && s.used || s.epoch != p.epoch.Load() || s.old(now) || p.db.yields(p)
	if old {
		p.mu.Unlock()
		p.expire(s)
		return
	}
	c := p.first
	if p.db.paused.Load() {
		p.mu.Unlock()
		p.expire(s)
		return
	}
	if c == nil {
		s.state = serverIdle
		p.idle = append(p.idle, s)
		p.mu.Unlock()
		return
	}
	p.dequeueLocked(c)
	if c.loop == s.loop {
		s.state = serverActive
		p.mu.Unlock()
		c.waiter.waiting = false
		if l := s.loop; l.depth < 8 {
			l.depth++
			c.linked(s)
			l.depth--
		} else {
			l.later(func() { p.hand(s, c) })
		}
		return
	}
	s.state = serverMoving
	p.mu.Unlock()
	p.move(s, c)
}

// hand links a server to a client that may have gone meanwhile.
func (p *pool) hand(s *server, c *client) {
	c.waiter.waiting = false
	switch {
	case s.shut:
		if !c.shut {
			c.loop.later(c.resume)
		}
	case c.shut || c.server != nil:
		p.give(s)
	default:
		c.linked(s)
	}
}

// move takes a server from its loop, on which it runs, to that of a client.
func (p *pool) move(s *server, c *client) {
	from, to := s.loop, c.loop
	if s.shut {
		to.post(func() { p.hand(s, c) })
		return
	}
	from.detach(&s.wire)
	from.moved = s // whoever is in the middle of it is not to touch it again
	p.mu.Lock()
	s.loop = to
	p.mu.Unlock()
	to.post(func() {
		if err := to.attach(&s.wire); err != nil {
			s.lost(err)
		}
		s.readable = true
		p.mu.Lock()
		if s.state == serverMoving {
			s.state = serverActive
		}
		p.mu.Unlock()
		p.hand(s, c)
	})
}

// canceled notes that a cancel request is done.
func (p *pool) canceled(s *server) {
	p.mu.Lock()
	s.canceling--
	waits := s.canceling == 0 && s.state == serverBeingCanceled
	if waits {
		s.state = serverActive
	}
	p.mu.Unlock()
	if waits {
		s.post(func() {
			if s.draining {
				s.maybeRecover()
			} else {
				s.give()
			}
		})
	}
}

// awaitsCancel tells whether a cancel request for a server is under way. If so
// the server is dealt with when that is done.
func (p *pool) awaitsCancel(s *server) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.canceling == 0 {
		return false
	}
	s.state = serverBeingCanceled
	return true
}

// post has fn run on the server's loop, wherever that is by then, unless the
// server is closed.
func (s *server) post(fn func()) {
	s.pool.mu.Lock()
	l := s.loop
	s.pool.mu.Unlock()
	l.post(func() {
		s.pool.mu.Lock()
		here := s.loop == l
		s.pool.mu.Unlock()
		switch {
		case !here:
			s.post(fn)
		case !s.shut:
			fn()
		}
	})
}

// expire closes a server that is no longer wanted.
func (p *pool) expire(s *server) {
	s.post(func() {
		_ = s.write(appendHeader(nil, 'X', 0))
		reason := "server lifetime over"
		if s.epoch != p.epoch.Load() {
			reason = "database configuration changed"
		}
		s.end(reason)
	})
}

// lose is called when a server was closed.
func (p *pool) lose(s *server) {
	p.mu.Lock()
	if s.state == serverClosed {
		p.mu.Unlock()
		return
	}
	if s.state == serverIdle {
		if i := slices.Index(p.idle, s); i >= 0 {
			p.idle = slices.Delete(p.idle, i, i+1)
		}
	}
	s.state = serverClosed
	p.size.Add(-1)
	if i := slices.Index(p.all, s); i >= 0 {
		p.all = slices.Delete(p.all, i, i+1)
	}
	p.mu.Unlock()
	p.db.free(p)
	p.grow()
}

// sizeLocked returns how many servers the pool may have now.
func (p *pool) sizeLocked() int {
	cfg := p.b.config()
	n, reserve := p.sizes()
	if reserve > 0 && p.first != nil && cfg.ReservePoolTimeout > 0 &&
		p.b.clock()-p.first.waiter.since > cfg.ReservePoolTimeout {
		n += reserve
	}
	return n
}

// sizes returns how many servers the pool may have, and how many more in need.
func (p *pool) sizes() (normal, reserve int) {
	cfg, db := p.b.config(), p.db.config()
	u := cfg.Users[p.user]
	return size(u.PoolSize, db.PoolSize, cfg.PoolSize), size(u.ReservePoolSize, db.ReservePoolSize, cfg.ReservePoolSize)
}

// maxOpening is how many servers of a pool log in at the same time.
const maxOpening = 4

// grow opens servers for those who wait.
func (p *pool) grow() {
	p.mu.Lock()
	want := 0
	if !p.closed && !p.db.paused.Load() && p.b.clock() >= p.nextTry {
		want = min(p.waiters, maxOpening) - p.opening
		want = min(want, p.sizeLocked()-len(p.all)-p.opening)
	}
	want = max(want, 0)
	p.opening += want
	p.mu.Unlock()
	p.openCounted(want)
}

// openCounted begins to open n servers that are counted as opening, as far as
// the limits of the database and the user allow it.
func (p *pool) openCounted(n int) bool {
	for i := range n {
		reserved := p.b.reserve(p)
		if reserved {
			p.size.Add(1)
			if p.b.spawn(func() { _ = p.connect(p.b.life) }) {
				continue
			}
			p.size.Add(-1)
			p.db.free(p)
		}
		p.mu.Lock()
		p.opening -= n - i
		p.mu.Unlock()
		return false
	}
	return true
}

// connect opens a server, for which there is a reserved place, and puts it into
// the pool.
func (p *pool) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.b.config().ServerConnectTimeout)
	defer cancel()
	epoch := p.epoch.Load()
	s, err := p.dial(ctx)
	if err != nil {
		p.mu.Lock()
		p.opening--
		p.size.Add(-1)
		p.failure = err
		if ctx.Err() == nil || !errors.Is(err, context.Canceled) {
			p.nextTry = p.b.clock() + p.b.config().ServerLoginRetry
		}
		p.mu.Unlock()
		p.db.free(p)
		p.greet(nil)
		p.b.log().Warn("pgbounce: server login failed", "database", p.db.name, "user", p.as, "error", err.Error())
		return err
	}
	l := p.b.pickLoop()
	done := make(chan struct{})
	l.do(func() {
		defer close(done)
		if err := l.attach(&s.wire); err != nil {
			s.wire.close()
			p.mu.Lock()
			p.opening--
			p.size.Add(-1)
			p.mu.Unlock()
			p.db.free(p)
			return
		}
		s.connected = l.now
		if life := p.lifetime(); life > 0 {
			// Servers that were opened together are not closed together.
			s.lifetime = life - time.Duration(rand.Int64N(int64(life)/10+1))
		}
		p.mu.Lock()
		p.opening--
		s.epoch = epoch
		s.state = serverActive
		p.all = append(p.all, s)
		p.failure, p.nextTry = nil, 0
		p.mu.Unlock()
		p.b.logServer(s, "new connection to server")
		s.readable = true
		if sql := p.db.config().ConnectQuery; sql != "" {
			s.run(sql, func(err *wireError) {
				if err != nil {
					s.end("connect_query failed: " + err.message)
					return
				}
				p.give(s)
			})
			return
		}
		p.give(s)
	})
	<-done
	p.grow()
	return nil
}

// once is the lifetime of a server that is closed after its first use.
const once = time.Duration(1)

// old tells whether the server has lived for long enough.
func (s *server) old(now time.Duration) bool {
	if s.lifetime == once {
		return s.used
	}
	return s.lifetime > 0 && now-s.connected > s.lifetime
}

func (p *pool) lifetime() time.Duration {
	if d := p.db.config().ServerLifetime; d != 0 {
		return max(d, 0)
	}
	return p.b.config().ServerLifetime
}

// greet publishes what servers of the pool say at login, or that there is no
// server to ask.
func (p *pool) greet(w *welcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w != nil {
		p.welcome = w
	}
	select {
	case <-p.greeted:
	default:
		close(p.greeted)
	}
}

// hello returns what clients of the pool are told at login. The first one has
// a server opened to learn it.
func (p *pool) hello(ctx context.Context) (*welcome, error) {
	for {
		p.mu.Lock()
		if p.failure != nil && len(p.all) == 0 && p.b.clock() < p.nextTry {
			defer p.mu.Unlock()
			return nil, p.failure
		}
		if p.welcome != nil {
			defer p.mu.Unlock()
			return p.welcome, nil
		}
		begin := p.opening == 0 && !p.db.paused.Load()
		if begin {
			p.opening++
			p.greeted = make(chan struct{})
		}
		greeted := p.greeted
		p.mu.Unlock()
		if p.db.paused.Load() || begin && !p.openCounted(1) {
			// Others have all places: wait until one is free.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			continue
		}
		select {
		case <-greeted:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
