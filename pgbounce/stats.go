package pgbounce

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Stats are what a Bouncer has and has done. SHOW STATS and SHOW POOLS of the
// console read the same numbers.
type Stats struct {
	// Clients are all connections of clients, with Logins, those that log in
	// now, and Consoles, those of the console. MaxClients is their limit.
	Clients    int
	Logins     int
	Consoles   int
	MaxClients int

	// Loops is how many threads forward.
	Loops int

	// PreparedStatements are those of all clients that differ.
	PreparedStatements int

	// Paused and Suspended tell whether Pause of all databases or Suspend is
	// in force.
	Paused    bool
	Suspended bool

	// Databases are those that clients can name, or have named where "*" stands
	// for all, by name.
	Databases []DatabaseStats

	// Pools are by database and user.
	Pools []PoolStats
}

// DatabaseStats are those of all pools of a database together.
type DatabaseStats struct {
	Database string
	Paused   bool
	Disabled bool

	// MaxServers and MaxClients are its limits, 0 for none.
	MaxServers int
	MaxClients int

	Counters
	Gauges
	Histograms
}

// PoolStats are those of the servers of one database and user, with those of
// its replication connections, and of its clients.
type PoolStats struct {
	Database string
	User     string
	Mode     Mode

	// PoolSize is how many servers it has at most, and ReservePoolSize how many
	// more if clients have waited for long.
	PoolSize        int
	ReservePoolSize int

	Counters
	Gauges
	Histograms
}

// Counters count since New. They never go back while their database is there.
// Those of clients are counted where the client is logged in, and those of
// servers, in a transaction that a Router has placed, where the server is.
type Counters struct {
	ServerAssignments int64 // how often a client got a server
	Transactions      int64
	Queries           int64
	Received          int64         // bytes from clients
	Sent              int64         // bytes to clients
	TransactionTime   time.Duration // from the first query to the end
	QueryTime         time.Duration // from a query to its answer's end
	WaitTime          time.Duration // of clients for servers
	ClientParses      int64         // prepared by clients
	ServerParses      int64         // prepared on servers, again included
	Binds             int64
	ClientLogins      int64
}

// Gauges are what there is now.
type Gauges struct {
	ClientsActive  int // linked, or without anything to ask
	ClientsWaiting int // for a server

	ServersActive        int // linked, or being made good again
	ServersIdle          int
	ServersUsed          int // idle for so long that they are checked before their next use
	ServersLogin         int // being opened
	ServersBeingCanceled int // idle but for a cancel request under way

	// CancelRequests are those under way to PostgreSQL.
	CancelRequests int

	// MaxWait is how long the client that waits for longest has waited.
	MaxWait time.Duration
}

// Histograms are of the times that Counters have the sums of.
type Histograms struct {
	WaitTimes        Histogram
	QueryTimes       Histogram
	TransactionTimes Histogram
}

// Stats returns what the Bouncer has and has done. Its parts are read one after
// another, while clients go on: a sum may be a little off another.
func (b *Bouncer) Stats() Stats {
	cfg := b.config()
	b.mu.Lock()
	s := Stats{
		Clients: int(b.clientCount.Load()), MaxClients: cfg.MaxClients, Loops: len(b.loops), PreparedStatements: b.statements.len(),
		Paused: b.paused.Load(), Suspended: b.suspended.Load(), Consoles: b.consoles.count(),
	}
	s.Logins = max(s.Clients-len(b.clients)-s.Consoles, 0)
	clients := map[*pool]int{}
	for c := range b.clients {
		clients[c.pool]++
	}
	at := map[string]int{}
	for name, d := range b.databases {
		at[name] = len(s.Databases)
		s.Databases = append(s.Databases, DatabaseStats{
			Database: name, Paused: d.paused.Load(), Disabled: d.disabled.Load(),
			MaxServers: size(d.config().MaxServers, cfg.MaxDatabaseServers), MaxClients: size(d.config().MaxClients, cfg.MaxDatabaseClients),
		})
	}
	b.mu.Unlock()
	for _, p := range b.allPools() {
		i, ok := at[p.db.name]
		if !ok {
			continue // it came, or went, meanwhile
		}
		counters, gauges, histograms := p.stats.read(), p.gauges(clients[p]), p.stats.histograms()
		d := &s.Databases[i]
		d.Counters.add(counters)
		d.Gauges.add(gauges)
		d.Histograms.add(histograms)
		n := len(s.Pools) - 1
		if n < 0 || s.Pools[n].Database != p.db.name || s.Pools[n].User != p.user {
			normal, reserve := p.sizes()
			s.Pools = append(s.Pools, PoolStats{
				Database: p.db.name, User: p.user, Mode: p.mode, PoolSize: normal, ReservePoolSize: reserve,
			})
			n++
		}
		own := &s.Pools[n]
		if p.replication == "" {
			own.Mode = p.mode
		}
		own.Counters.add(counters)
		own.Gauges.add(gauges)
		own.Histograms.add(histograms)
	}
	slices.SortFunc(s.Databases, func(x, y DatabaseStats) int { return cmp.Compare(x.Database, y.Database) })
	return s
}

func (c *Counters) add(o Counters) {
	c.ServerAssignments += o.ServerAssignments
	c.Transactions += o.Transactions
	c.Queries += o.Queries
	c.Received += o.Received
	c.Sent += o.Sent
	c.TransactionTime += o.TransactionTime
	c.QueryTime += o.QueryTime
	c.WaitTime += o.WaitTime
	c.ClientParses += o.ClientParses
	c.ServerParses += o.ServerParses
	c.Binds += o.Binds
	c.ClientLogins += o.ClientLogins
}

func (g *Gauges) add(o Gauges) {
	g.ClientsActive += o.ClientsActive
	g.ClientsWaiting += o.ClientsWaiting
	g.ServersActive += o.ServersActive
	g.ServersIdle += o.ServersIdle
	g.ServersUsed += o.ServersUsed
	g.ServersLogin += o.ServersLogin
	g.ServersBeingCanceled += o.ServersBeingCanceled
	g.CancelRequests += o.CancelRequests
	g.MaxWait = max(g.MaxWait, o.MaxWait)
}

func (h *Histograms) add(o Histograms) {
	h.WaitTimes.add(o.WaitTimes)
	h.QueryTimes.add(o.QueryTimes)
	h.TransactionTimes.add(o.TransactionTimes)
}

func (h *Histogram) add(o Histogram) {
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
	h.Sum += o.Sum
}

// gauges returns what the pool has now, with so many clients.
func (p *pool) gauges(clients int) (g Gauges) {
	check, now := p.b.config().ServerCheckDelay, p.b.clock()
	p.mu.Lock()
	defer p.mu.Unlock()
	g.ClientsWaiting = p.waiters
	g.ClientsActive = max(clients-p.waiters, 0) // who waits here may be logged in elsewhere
	g.ServersLogin = p.opening
	if p.first != nil {
		g.MaxWait = now - p.first.waiter.since
	}
	for _, s := range p.idle {
		if check > 0 && now-s.idleSince > check {
			g.ServersUsed++
		}
	}
	g.ServersIdle = len(p.idle) - g.ServersUsed
	for _, s := range p.all {
		g.CancelRequests += s.canceling
		if s.state == serverBeingCanceled {
			g.ServersBeingCanceled++
		}
	}
	g.ServersActive = len(p.all) - len(p.idle) - g.ServersBeingCanceled
	return g
}

// stats are the counters of a pool.
type stats struct {
	assigned, transactions, queries   atomic.Int64
	received, sent, fromServer        atomic.Int64
	xactTime, queryTime, waitTime     atomic.Int64 // nanoseconds
	clientParses, serverParses, binds atomic.Int64
	waits, runs, xacts                histogram
	logins                            atomic.Int64

	mu           sync.Mutex
	older, newer snapshot
}

func (s *stats) waited(d time.Duration) {
	s.assigned.Add(1)
	s.waitTime.Add(int64(d))
	s.waits.add(d)
}

func (s *stats) ran(d time.Duration) {
	s.queries.Add(1)
	s.queryTime.Add(int64(d))
	s.runs.add(d)
}

func (s *stats) transacted(d time.Duration) {
	s.transactions.Add(1)
	s.xactTime.Add(int64(d))
	s.xacts.add(d)
}

func (s *stats) read() Counters {
	return Counters{
		ServerAssignments: s.assigned.Load(),
		Transactions:      s.transactions.Load(),
		Queries:           s.queries.Load(),
		Received:          s.received.Load(),
		Sent:              s.sent.Load(),
		TransactionTime:   time.Duration(s.xactTime.Load()),
		QueryTime:         time.Duration(s.queryTime.Load()),
		WaitTime:          time.Duration(s.waitTime.Load()),
		ClientParses:      s.clientParses.Load(),
		ServerParses:      s.serverParses.Load(),
		Binds:             s.binds.Load(),
		ClientLogins:      s.logins.Load(),
	}
}

func (s *stats) histograms() Histograms {
	return Histograms{
		WaitTimes:        s.waits.read(s.waitTime.Load()),
		QueryTimes:       s.runs.read(s.queryTime.Load()),
		TransactionTimes: s.xacts.read(s.xactTime.Load()),
	}
}

// statsPeriod is what averages are over: at least one whole period, at most
// two, as in PgBouncer.
const statsPeriod = time.Minute

// A snapshot is what counters were at a time.
type snapshot struct {
	at       time.Duration
	counters Counters
}

// tick is called often, and takes a snapshot at the begin of each period.
func (s *stats) tick(now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now/statsPeriod != s.newer.at/statsPeriod {
		s.older, s.newer = s.newer, snapshot{now, s.read()}
	}
}

// before returns what to take averages since: the snapshot of the begin of the
// last period. A pool that came later has none, and had counted nothing then.
func (s *stats) before(now time.Duration) snapshot {
	s.tick(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	return snapshot{max(s.older.at, (now/statsPeriod-1)*statsPeriod, 0), s.older.counters}
}
