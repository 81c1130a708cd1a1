package pgbounce

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"
)

// A database is one that clients have named, with its pools.
type database struct {
	b    *Bouncer
	name string
	cfg  atomic.Pointer[Database]

	paused   atomic.Bool // no servers are handed out
	disabled atomic.Bool // no clients are let in
	// hungry are pools that wait for the limit of servers to let them.
	hungry atomic.Pointer[[]hungry]

	// Under the Bouncer's lock:
	pools   map[poolKey]*pool
	servers int
	clients int
	auto    bool          // made from "*"
	usedAt  time.Duration // when it was last known to be in use
}

type poolKey struct {
	user, node string
	mode       Mode
}

type hungry struct {
	pool  *pool
	since time.Duration
}

func (d *database) config() *Database { return d.cfg.Load() }

// An account is the count of servers and clients by user, under the Bouncer's lock.
type account struct{ servers, clients int }

// reserve takes a place for one more server of a pool. If a limit is reached,
// an idle server of another pool of the database goes, and the pool is told
// when there is room.
func (b *Bouncer) reserve(p *pool) bool {
	cfg, d := b.config(), p.db
	b.mu.Lock()
	if limit := size(cfg.Users[p.user].MaxServers, cfg.MaxUserServers); limit > 0 && b.account(p.user).servers >= limit {
		pools := b.poolsOfLocked(p.user)
		b.mu.Unlock()
		evict(pools, p)
		return false
	}
	if limit := size(d.config().MaxServers, cfg.MaxDatabaseServers); limit > 0 && d.servers >= limit {
		pools := slices.Collect(maps.Values(d.pools))
		d.starve(p)
		b.mu.Unlock()
		evict(pools, p)
		return false
	}
	d.servers++
	b.account(p.user).servers++
	b.mu.Unlock()
	return true
}

// poolsOfLocked returns all pools of a user.
func (b *Bouncer) poolsOfLocked(user string) (pools []*pool) {
	for _, d := range b.databases {
		for _, p := range d.pools {
			if p.user == user {
				pools = append(pools, p)
			}
		}
	}
	return pools
}

func (b *Bouncer) account(user string) *account {
	a := b.accounts[user]
	if a == nil {
		a = &account{}
		b.accounts[user] = a
	}
	return a
}

// starve adds a pool to those that wait for a place. The caller holds the
// Bouncer's lock.
func (d *database) starve(p *pool) {
	var list []hungry
	if h := d.hungry.Load(); h != nil {
		list = slices.Clone(*h)
	}
	if !slices.ContainsFunc(list, func(h hungry) bool { return h.pool == p }) {
		list = append(list, hungry{p, d.b.clock()})
		d.hungry.Store(&list)
	}
}

// evict closes the server, of another pool, that was idle for longest.
func evict(pools []*pool, but *pool) {
	var oldest *pool
	var since time.Duration
	for _, p := range pools {
		if p == but {
			continue
		}
		p.mu.Lock()
		if len(p.idle) > 0 && (oldest == nil || p.idle[0].idleSince < since) {
			oldest, since = p, p.idle[0].idleSince
		}
		p.mu.Unlock()
	}
	if oldest == nil {
		return
	}
	oldest.mu.Lock()
	var s *server
	if len(oldest.idle) > 0 {
		s = oldest.idle[0]
		oldest.idle = slices.Delete(oldest.idle, 0, 1)
		s.state = serverActive
	}
	oldest.mu.Unlock()
	if s != nil {
		oldest.expire(s)
	}
}

// fairDelay is how long a pool without any server waits for one of a pool that
// has only one more.
const fairDelay = 50 * time.Millisecond

// yields tells whether a pool should give up a server for another one, that
// has fewer and waits at the limit of the database.
func (d *database) yields(p *pool) bool {
	list := d.hungry.Load()
	if list == nil {
		return false
	}
	have := p.size.Load()
	for _, h := range *list {
		other := h.pool.size.Load()
		if h.pool != p && (other+1 < have || other == 0 && d.b.clock()-h.since > fairDelay) {
			return true
		}
	}
	return false
}

// free gives a place back, and lets those try who wait for one.
func (d *database) free(p *pool) {
	b := d.b
	b.mu.Lock()
	d.servers--
	b.account(p.user).servers--
	list := d.hungry.Swap(nil)
	var others []*pool
	if size(b.config().Users[p.user].MaxServers, b.config().MaxUserServers) > 0 {
		others = b.poolsOfLocked(p.user)
	}
	b.mu.Unlock()
	for _, other := range others {
		if other != p {
			other.grow()
		}
	}
	if list != nil {
		for _, h := range *list {
			h.pool.grow()
		}
	}
}

// database returns the one clients call so, or nil.
func (b *Bouncer) database(name string) *database {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d := b.databases[name]; d != nil {
		d.usedAt = b.clock()
		return d
	}
	cfg, ok := b.config().Databases["*"]
	if !ok {
		return nil
	}
	return b.addDatabaseLocked(name, cfg, true)
}

func (b *Bouncer) addDatabaseLocked(name string, cfg Database, auto bool) *database {
	d := &database{b: b, name: name, pools: map[poolKey]*pool{}, auto: auto, usedAt: b.clock()}
	d.cfg.Store(&cfg)
	d.paused.Store(b.paused.Load())
	b.databases[name] = d
	return d
}

// poolOf returns the pool of a user, of the configured mode if it is 0.
func (b *Bouncer) poolOf(d *database, user string, mode Mode, login credentials) *pool {
	cfg := d.config()
	as := user
	if cfg.User != "" {
		as, user = cfg.User, cfg.User
		login = credentials{password: cfg.Password}
	} else if cfg.Password != "" {
		login = credentials{password: cfg.Password}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if mode == 0 {
		mode = b.modeOf(cfg, user)
	}
	key := poolKey{user: user, mode: mode}
	p := d.pools[key]
	if p == nil {
		name := cfg.Name
		if name == "" {
			name = d.name
		}
		p = &pool{b: b, db: d, user: user, as: as, forDB: name, greeted: make(chan struct{}), login: login}
		p.mode = mode
		d.pools[key] = p
	} else if !login.empty() {
		p.mu.Lock()
		p.login = login
		p.mu.Unlock()
	}
	return p
}

// replicationPool returns the pool of a user's replication connections.
func (b *Bouncer) replicationPool(d *database, like *pool, replication string) *pool {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := poolKey{user: like.user, node: "replication=" + replication}
	p := d.pools[key]
	if p == nil {
		p = &pool{
			b: b, db: d, user: like.user, as: like.as, forDB: like.forDB, greeted: make(chan struct{}),
			mode: Session, replication: replication,
		}
		d.pools[key] = p
	}
	p.mu.Lock()
	p.login = like.login
	p.mu.Unlock()
	return p
}

// modeOf returns the mode of a user's clients in a database.
func (b *Bouncer) modeOf(db *Database, user string) Mode {
	cfg := b.config()
	return cmp.Or(cfg.Users[user].Mode, db.Mode, cfg.Mode)
}

// allPools returns every pool, in the order of their names.
func (b *Bouncer) allPools() (pools []*pool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.databases {
		for _, p := range d.pools {
			pools = append(pools, p)
		}
	}
	slices.SortFunc(pools, func(x, y *pool) int {
		return cmp.Or(cmp.Compare(x.db.name, y.db.name), cmp.Compare(x.user, y.user), cmp.Compare(x.replication, y.replication), cmp.Compare(x.mode, y.mode))
	})
	return pools
}
