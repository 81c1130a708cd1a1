package pgbounce

import (
	"slices"
	"time"
)

// janitorPeriod is how often timeouts are looked at, as in PgBouncer.
const janitorPeriod = time.Second / 3

// janitor ends what has lasted too long.
func (b *Bouncer) janitor() {
	tick := time.NewTicker(janitorPeriod)
	defer tick.Stop()
	for {
		select {
		case <-b.life.Done():
			return
		case <-tick.C:
		}
		b.openMinimums()
		for _, p := range b.allPools() {
			p.stats.tick(b.clock())
			p.tidy()
		}
		b.tidyClients()
		b.tidyDatabases()
		b.growLoops()
	}
}

// openMinimums makes the pools that have servers before they have clients.
func (b *Bouncer) openMinimums() {
	cfg := b.config()
	for name, db := range cfg.Databases {
		if name == "*" || db.User == "" || size(db.MinPoolSize, cfg.MinPoolSize) == 0 {
			continue
		}
		if d := b.database(name); d != nil {
			b.poolOf(d, db.User, 0, credentials{})
		}
	}
}

// tidy looks after a pool's queue and servers.
func (p *pool) tidy() {
	cfg, now := p.b.config(), p.b.clock()
	var late, notify []*client
	p.mu.Lock()
	for c := p.first; c != nil; c = c.waiter.next {
		waited := now - c.waiter.since
		switch {
		case cfg.QueryWaitTimeout > 0 && waited > cfg.QueryWaitTimeout && !p.db.paused.Load():
			late = append(late, c)
		case cfg.QueryWaitNotify > 0 && waited > cfg.QueryWaitNotify && !c.waiter.notified:
			c.waiter.notified = true
			notify = append(notify, c)
		}
	}
	var old, young []*server
	idle := slices.Clone(p.idle)
	least := p.leastLocked()
	for _, s := range idle {
		tooOld := s.old(now) || s.epoch != p.epoch.Load()
		idles := cfg.ServerIdleTimeout > 0 && now-s.idleSince > cfg.ServerIdleTimeout && len(p.all)-len(old) > least
		if tooOld || idles {
			old = append(old, s)
			p.idle = slices.DeleteFunc(p.idle, func(i *server) bool { return i == s })
			s.state = serverActive
		}
	}
	for _, s := range p.all {
		if s.state == serverActive {
			young = append(young, s)
		}
	}
	want := 0
	if !p.closed && now >= p.nextTry {
		want = max(least-len(p.all)+len(old)-p.opening, 0)
		p.opening += want
	}
	p.mu.Unlock()
	for _, c := range late {
		c.home.Load().do(func() {
			if !c.shut && c.waiter.waiting {
				c.fail(fatal("08P01", "query_wait_timeout"))
			}
		})
	}
	for _, c := range notify {
		c.home.Load().do(func() {
			if !c.shut && c.waiter.waiting {
				c.answer(appendError(nil, 'N', "NOTICE", "00000", "No server connection available in postgres backend, client being queued"))
			}
		})
	}
	for _, s := range old {
		p.expire(s)
	}
	for _, s := range young {
		s.post(s.tidy)
	}
	p.openCounted(want)
	p.grow()
}

// leastLocked returns how many servers to keep open.
func (p *pool) leastLocked() int {
	cfg, db := p.b.config(), p.db.config()
	least := size(db.MinPoolSize, cfg.MinPoolSize)
	if p.replication != "" || db.User == "" && len(p.all) == 0 && p.waiters == 0 {
		return 0
	}
	return least
}

// tidy ends a linked or recovering server that has lasted too long. It runs on
// the server's loop.
func (s *server) tidy() {
	cfg, now := s.b.config(), s.loop.now
	if s.draining {
		if now-s.drainSince > cfg.RecoverTimeout {
			s.end("client disconnected while query was active")
		}
		return
	}
	c := s.client
	if c == nil || c.shut {
		return
	}
	u := cfg.Users[c.user]
	limit := func(user, all time.Duration) time.Duration {
		if user != 0 {
			return max(user, 0)
		}
		return all
	}
	switch {
	case over(limit(u.QueryTimeout, cfg.QueryTimeout), s.queryAt, now):
		c.fail(fatal("08P01", "query_timeout"))
	case over(limit(u.TransactionTimeout, cfg.TransactionTimeout), s.xactAt, now):
		c.fail(fatal("08P01", "transaction timeout"))
	case s.status != 'I' && s.queue.n == 0 && over(limit(u.IdleTransactionTimeout, cfg.IdleTransactionTimeout), s.readyAt, now):
		c.fail(fatal("08P01", "idle transaction timeout"))
	}
}

func over(limit, since, now time.Duration) bool { return limit > 0 && since > 0 && now-since > limit }

// tidyClients ends clients that have done nothing for too long, or that do not
// take what they are told at their end.
func (b *Bouncer) tidyClients() {
	cfg := b.config()
	limits := cfg.ClientIdleTimeout > 0
	for _, u := range cfg.Users {
		limits = limits || u.ClientIdleTimeout > 0
	}
	if !limits {
		return
	}
	for _, c := range b.allClients() {
		limit := cfg.ClientIdleTimeout
		if u := cfg.Users[c.user].ClientIdleTimeout; u != 0 {
			limit = max(u, 0)
		}
		c.home.Load().do(func() {
			if !c.shut && c.server == nil && !c.waiter.waiting && over(limit, c.idleSince, c.loop.now) {
				c.fail(fatal("08P01", "client_idle_timeout"))
			}
		})
	}
}

// tidyDatabases forgets databases that nobody has listed and nobody uses.
func (b *Bouncer) tidyDatabases() {
	limit, now := b.config().AutoDatabaseTimeout, b.clock()
	if limit == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, d := range b.databases {
		switch {
		case !d.auto || d.paused.Load() || d.disabled.Load():
		case d.inUseLocked():
			d.usedAt = now
		case now-d.usedAt > limit:
			delete(b.databases, name)
		}
	}
}

// inUseLocked tells whether a database has clients or servers, or clients of
// others that wait for one. The caller holds the Bouncer's lock.
func (d *database) inUseLocked() bool {
	if d.clients > 0 || d.servers > 0 {
		return true
	}
	for _, p := range d.pools {
		p.mu.Lock()
		waiting := p.waiters > 0
		p.mu.Unlock()
		if waiting {
			return true
		}
	}
	return false
}

// growLoops starts one more loop if those there have hardly slept, and this
// process has had the processor time for that: on a busy machine a loop seems
// busy that only waits for its turn, and a second one would only cost, since
// what goes from one loop to another has to wake it.
func (b *Bouncer) growLoops() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, used := b.clock(), processorTime()
	period, ran := now-b.looked.at, used-b.looked.used
	b.looked.at, b.looked.used = now, used
	busy := ran > period*time.Duration(len(b.loops))*9/10
	for _, l := range b.loops {
		busy = time.Duration(l.busy.Swap(0)) > period*9/10 && busy
	}
	if !busy || len(b.loops) >= b.maxLoops() {
		return
	}
	if err := b.addLoopLocked(); err != nil {
		b.log().Error("pgbounce: no further loop", "error", err.Error())
	}
}
