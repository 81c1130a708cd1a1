package pgbounce

// StartLoops starts loops until there are n, which load would do in time.
func (b *Bouncer) StartLoops(n int) error {
	if err := b.begin(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.loops) < n {
		if err := b.addLoopLocked(); err != nil {
			return err
		}
	}
	return nil
}

// A Census is how much there is of what must not leak.
type Census struct {
	Clients, Counted, Logins int
	Waiters, Servers, Places int
	Statements, Keys         int
}

// Census counts.
func (b *Bouncer) Census() (c Census) {
	for _, p := range b.allPools() {
		p.mu.Lock()
		c.Waiters += p.waiters
		c.Servers += len(p.all) + p.opening
		p.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c.Clients, c.Logins, c.Counted = len(b.clients), len(b.logins), int(b.clientCount.Load())
	for _, d := range b.databases {
		c.Places += d.servers
	}
	b.statements.mu.Lock()
	c.Statements = len(b.statements.byBody)
	b.statements.mu.Unlock()
	b.cancels.mu.Lock()
	c.Keys = len(b.cancels.keys)
	b.cancels.mu.Unlock()
	return c
}

// Idle counts the servers that nobody uses.
func (b *Bouncer) Idle() (n int) {
	for _, p := range b.allPools() {
		p.mu.Lock()
		n += len(p.idle)
		p.mu.Unlock()
	}
	return n
}
