package pgbounce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Errors of the methods that name a database or a client.
var (
	ErrUnknownDatabase = errors.New("pgbounce: unknown database")
	ErrUnknownClient   = errors.New("pgbounce: client not found")
	ErrState           = errors.New("pgbounce: already so")
)

// named returns the database of that name, or all if it is "".
func (b *Bouncer) named(name string) ([]*database, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name == "" {
		return slices.Collect(maps.Values(b.databases)), nil
	}
	if d := b.databases[name]; d != nil {
		return []*database{d}, nil
	}
	if cfg, ok := b.config().Databases["*"]; ok {
		return []*database{b.addDatabaseLocked(name, cfg, true)}, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrUnknownDatabase, name)
}

// all returns a database's pools.
func (d *database) all() []*pool {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	return slices.Collect(maps.Values(d.pools))
}

// Pause keeps the clients of a database, or of all if it is "", from getting
// servers, and closes its servers as they become idle. It returns when all are
// closed, or ctx ends; the database stays paused in either case, until Resume.
func (b *Bouncer) Pause(ctx context.Context, database string) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	if database == "" && b.paused.Swap(true) {
		return fmt.Errorf("%w: paused", ErrState)
	}
	for _, d := range list {
		d.paused.Store(true)
	}
	return b.drained(ctx, list, func(p *pool) bool {
		p.mu.Lock()
		idle := p.idle
		p.idle = nil
		for _, s := range idle {
			s.state = serverActive
		}
		left := len(p.all) + p.opening
		p.mu.Unlock()
		for _, s := range idle {
			p.expire(s)
		}
		return left == 0
	})
}

// drained waits until done is true of each pool.
func (b *Bouncer) drained(ctx context.Context, list []*database, done func(*pool) bool) error {
	for {
		left := false
		for _, d := range list {
			for _, p := range d.all() {
				if !done(p) {
					left = true
				}
			}
		}
		if !left {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-b.life.Done():
			return ErrClosed
		}
	}
}

// Resume ends Pause, Kill and Suspend.
func (b *Bouncer) Resume(database string) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	was := database == "" && (b.paused.Swap(false) || b.suspended.Swap(false))
	for _, d := range list {
		was = d.paused.Swap(false) || was
		for _, p := range d.all() {
			p.grow()
		}
	}
	for _, c := range b.allClients() {
		c.home.Load().do(func() { c.flow() })
	}
	if !was {
		return fmt.Errorf("%w: not paused", ErrState)
	}
	return nil
}

// Disable turns new clients of a database away.
func (b *Bouncer) Disable(database string) error { return b.disable(database, true) }

// Enable ends Disable.
func (b *Bouncer) Enable(database string) error { return b.disable(database, false) }

func (b *Bouncer) disable(database string, disabled bool) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	for _, d := range list {
		d.disabled.Store(disabled)
	}
	return nil
}

// Reconnect closes the servers of a database, or of all if it is "", each when
// it is next idle.
func (b *Bouncer) Reconnect(database string) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	for _, d := range list {
		for _, p := range d.all() {
			p.renew()
		}
	}
	return nil
}

// renew makes all servers there are old ones.
func (p *pool) renew() {
	p.mu.Lock()
	p.epoch.Add(1)
	p.nextTry = 0
	idle := p.idle
	p.idle = nil
	for _, s := range idle {
		s.state = serverActive
	}
	p.mu.Unlock()
	for _, s := range idle {
		p.expire(s)
	}
}

// WaitClose returns when the servers that a Reconnect has made old are closed.
func (b *Bouncer) WaitClose(ctx context.Context, database string) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	return b.drained(ctx, list, func(p *pool) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return !slices.ContainsFunc(p.all, func(s *server) bool { return s.epoch != p.epoch.Load() })
	})
}

// Kill disconnects all clients and servers of a database at once, and pauses
// it.
func (b *Bouncer) Kill(database string) error {
	list, err := b.named(database)
	if err != nil {
		return err
	}
	for _, d := range list {
		d.paused.Store(true)
		b.expel(d, fatal("57P01", "database removed"))
		for _, p := range d.all() {
			p.endAll("database removed")
		}
	}
	return nil
}

// expel disconnects the clients of a database.
func (b *Bouncer) expel(d *database, why *wireError) {
	for _, c := range b.allClients() {
		if c.pool.db == d {
			c.home.Load().call(func() { c.fail(why) })
		}
	}
}

// endAll closes a pool's servers at once.
func (p *pool) endAll(reason string) {
	p.mu.Lock()
	all := slices.Clone(p.all)
	p.mu.Unlock()
	for _, s := range all {
		s.post(func() {
			_ = s.write(appendHeader(nil, 'X', 0))
			s.end(reason)
		})
	}
	for {
		p.mu.Lock()
		left := slices.ContainsFunc(all, func(s *server) bool { return s.state != serverClosed })
		p.mu.Unlock()
		if !left {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// KillClient disconnects the client that SHOW CLIENTS has under this id.
func (b *Bouncer) KillClient(id uint64) error {
	for _, c := range b.allClients() {
		if c.id == id {
			c.home.Load().call(func() { c.fail(fatal("57P01", "admin forced disconnect")) })
			return nil
		}
	}
	return fmt.Errorf("%w: %d", ErrUnknownClient, id)
}

// Suspend stops forwarding, and returns when all that was read has been
// written. Resume goes on.
func (b *Bouncer) Suspend(ctx context.Context) error {
	if b.suspended.Swap(true) {
		return fmt.Errorf("%w: suspended", ErrState)
	}
	for {
		pending := false
		for _, c := range b.allClients() {
			c.home.Load().call(func() {
				if c.pending() || c.server != nil && c.server.pending() {
					pending = true
				}
			})
		}
		if !pending {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		case <-b.life.Done():
			return ErrClosed
		}
	}
}

// Shutdown lets no new clients in, waits until all servers have been given
// back, which in transaction mode is when the transactions under way have ended,
// and closes the Bouncer. When ctx ends first it closes what is left and returns
// the context's error.
func (b *Bouncer) Shutdown(ctx context.Context) error {
	b.closeListeners(true)
	err := b.Pause(ctx, "")
	if errors.Is(err, ErrState) || errors.Is(err, ErrClosed) {
		err = nil
	}
	return errors.Join(err, b.Close())
}

// ShutdownClients lets no new clients in, waits until those that are in have
// left, and closes the Bouncer, at the latest when ctx ends. Until then, Unix
// sockets stay open for cancel requests, which peers pass on.
func (b *Bouncer) ShutdownClients(ctx context.Context) error {
	b.closeListeners(false)
	for b.clientCount.Load() > 0 {
		select {
		case <-b.empty:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), b.Close())
		case <-b.life.Done():
			return nil
		}
	}
	return b.Close()
}

func (b *Bouncer) closeListeners(all bool) {
	b.closing.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.listeners {
		if all || l.Addr().Network() != "unix" {
			l.Close()
		}
	}
}

// Reload takes over another Config. What it says of loops, tracked parameters
// and peers' numbers counts only for a new Bouncer; the mode of a pool, and
// limits on clients, only for clients that come from now on. Servers of a
// database that is elsewhere now are closed when they are next idle, and
// clients of one that is gone are disconnected. An error leaves all as it was.
func (b *Bouncer) Reload(cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.cfg.Store(&cfg)
	var removed, changed []*database
	for name, d := range b.databases {
		now, ok := cfg.Databases[name]
		if !ok {
			if now, ok = cfg.Databases["*"]; !ok {
				removed = append(removed, d)
				delete(b.databases, name)
				continue
			}
		}
		if !d.config().same(now) {
			changed = append(changed, d)
		}
		d.cfg.Store(&now)
	}
	for name, db := range cfg.Databases {
		if name != "*" && b.databases[name] == nil {
			b.addDatabaseLocked(name, db, false)
		}
	}
	b.mu.Unlock()
	for _, d := range removed {
		d.disabled.Store(true)
		b.expel(d, fatal("57P01", "database removed"))
		for _, p := range d.all() {
			p.shut()
		}
	}
	for _, d := range changed {
		for _, p := range d.all() {
			p.renew()
		}
	}
	for _, p := range b.allPools() {
		p.grow()
	}
	return nil
}

// shut closes a pool for good.
func (p *pool) shut() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.endAll("database removed")
}
