package pgbounce

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// shows are what SHOW can show. Exporters depend on names, order and types of
// the columns, which are PgBouncer's.
var shows = map[string]func(*console){
	"active_sockets": func(c *console) { c.showSockets(socket.busy) },
	"clients":        (*console).showClients,
	"config":         (*console).showConfig,
	"databases":      (*console).showDatabases,
	"dns_hosts":      func(c *console) { c.header("hostname ttl:q addrs") }, // names are looked up anew for each server
	"dns_zones":      func(c *console) { c.header("zonename serial:q count:i") },
	"fds":            (*console).showFDs,
	"help":           (*console).showHelp,
	"lists":          (*console).showLists,
	"mem":            (*console).showMem,
	"peer_pools":     (*console).showPeerPools,
	"peers":          (*console).showPeers,
	"pools":          (*console).showPools,
	"servers":        (*console).showServers,
	"sockets":        func(c *console) { c.showSockets(func(socket) bool { return true }) },
	"state":          (*console).showState,
	"stats":          (*console).showStats,
	"stats_averages": (*console).showAverages,
	"stats_totals":   (*console).showTotalsOfDatabases,
	"totals":         (*console).showTotals,
	"users":          (*console).showUsers,
	"version":        (*console).showVersion,
}

// show answers a SHOW, but for its tag, and tells whether there is such a one.
func (c *console) show(what string) bool {
	if value, ok := parametersOfDrivers[what]; ok {
		if what == "application_name" {
			value = c.name
		}
		c.header(what)
		c.row(value)
		return true
	}
	do := shows[what]
	if do == nil {
		return false
	}
	if what == "fds" && !c.admin {
		c.error(errNotAdmin)
		return true
	}
	do(c)
	return true
}

// The types of columns, by the letters in a header, with their sizes.
var columnTypes = map[string]struct {
	oid  uint32
	size int16
}{"": {25, -1}, "i": {23, 4}, "q": {20, 8}, "n": {1700, -1}, "b": {17, -1}}

// header begins a table: columns are separated by blanks, each a name that may
// be followed by a colon and the letter of a type other than text.
func (c *console) header(columns string) {
	fields := strings.Fields(columns)
	body := binary.BigEndian.AppendUint16(nil, uint16(len(fields)))
	for _, f := range fields {
		name, letter, _ := strings.Cut(f, ":")
		t := columnTypes[letter]
		body = append(append(body, name...), 0)
		body = append(body, 0, 0, 0, 0, 0, 0) // of no table
		body = binary.BigEndian.AppendUint32(body, t.oid)
		body = binary.BigEndian.AppendUint16(body, uint16(t.size))
		body = append(body, 0xff, 0xff, 0xff, 0xff, 0, 0) // no modifier; as text
	}
	c.out = append(appendHeader(c.out, 'T', len(body)), body...)
}

// row adds a row to a table.
func (c *console) row(values ...any) {
	at := len(c.out)
	c.out = binary.BigEndian.AppendUint16(appendHeader(c.out, 'D', 0), uint16(len(values)))
	for _, v := range values {
		if v == nil {
			c.out = append(c.out, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		begin := len(c.out) + 4
		c.out = append(c.out, 0, 0, 0, 0)
		switch v := v.(type) {
		case string:
			c.out = append(c.out, strings.ReplaceAll(v, "\x00", "")...)
		case int:
			c.out = strconv.AppendInt(c.out, int64(v), 10)
		case int64:
			c.out = strconv.AppendInt(c.out, v, 10)
		case uint32:
			c.out = strconv.AppendUint(c.out, uint64(v), 10)
		case uint64:
			c.out = strconv.AppendUint(c.out, v, 10)
		case bool:
			c.out = append(c.out, '0')
			if v {
				c.out[len(c.out)-1] = '1'
			}
		case time.Time:
			c.out = v.AppendFormat(c.out, "2006-01-02 15:04:05 MST")
		default:
			panic(fmt.Sprintf("bug: a column of type %T", v))
		}
		binary.BigEndian.PutUint32(c.out[begin-4:], uint32(len(c.out)-begin))
	}
	binary.BigEndian.PutUint32(c.out[at+1:], uint32(len(c.out)-at-1))
	if len(c.out) > bufSize {
		c.flush()
	}
}

// orNil is NULL for "".
func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func (c *console) showPools() {
	c.header("database user cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active:i sv_active_cancel:i " +
		"sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i pool_mode load_balance_hosts")
	cfg := c.b.config()
	for _, p := range c.b.Stats().Pools {
		db, ok := cfg.Databases[p.Database]
		if !ok {
			db = cfg.Databases["*"]
		}
		// A cancel request does not wait here, and a server that is tested has
		// its client already.
		c.row(p.Database, p.User, p.ClientsActive, p.ClientsWaiting, p.CancelRequests, 0, p.ServersActive, p.CancelRequests,
			p.ServersBeingCanceled, p.ServersIdle, p.ServersUsed, 0, p.ServersLogin,
			int64(p.MaxWait/time.Second), (p.MaxWait % time.Second).Microseconds(), p.Mode.String(), db.balance())
	}
}

// balance is how servers are spread over several hosts.
func (d Database) balance() any {
	if len(d.Hosts) > 1 {
		if d.Failover {
			return "disable"
		}
		return "round-robin"
	}
	return nil
}

func (c *console) showDatabases() {
	c.header("name host port:i database force_user pool_size:i min_pool_size:i reserve_pool_size:i server_lifetime:i pool_mode " +
		"load_balance_hosts max_connections:i current_connections:i max_client_connections:i current_client_connections:i paused:i disabled:i")
	cfg := c.b.config()
	for _, d := range c.b.allDatabases() {
		db := d.config()
		c.b.mu.Lock()
		servers, clients := d.servers, d.clients
		c.b.mu.Unlock()
		host := "localhost"
		if len(db.Hosts) > 0 {
			host = strings.Join(db.Hosts, ",")
		}
		lifetime := max(cmp.Or(db.ServerLifetime, cfg.ServerLifetime), 0)
		c.row(d.name, host, cmp.Or(db.Port, 5432), cmp.Or(db.Name, d.name), orNil(db.User),
			size(db.PoolSize, cfg.PoolSize), size(db.MinPoolSize, cfg.MinPoolSize), size(db.ReservePoolSize, cfg.ReservePoolSize),
			int64(lifetime/time.Second), orNil(db.Mode.String()), db.balance(),
			size(db.MaxServers, cfg.MaxDatabaseServers), servers, size(db.MaxClients, cfg.MaxDatabaseClients), clients,
			d.paused.Load(), d.disabled.Load())
	}
}

// allDatabases returns every database, in the order of their names.
func (b *Bouncer) allDatabases() []*database {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.databases), func(x, y *database) int { return strings.Compare(x.name, y.name) })
}

func (c *console) showUsers() {
	c.header("name pool_size reserve_pool_size pool_mode max_user_connections:i current_connections:i " +
		"max_user_client_connections:i current_client_connections:i")
	cfg := c.b.config()
	c.b.mu.Lock()
	accounts := map[string]account{}
	for name, a := range c.b.accounts {
		accounts[name] = *a
	}
	c.b.mu.Unlock()
	all := maps.Clone(accounts)
	for name := range cfg.Users {
		all[name] = accounts[name]
	}
	for name := range cfg.Auth.Secrets {
		all[name] = accounts[name]
	}
	own := func(n int) string { // "" is the database's
		if n == 0 {
			return ""
		}
		return strconv.Itoa(max(n, 0))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		u, a := cfg.Users[name], all[name]
		c.row(name, own(u.PoolSize), own(u.ReservePoolSize), orNil(u.Mode.String()), size(u.MaxServers, cfg.MaxUserServers), a.servers,
			size(u.MaxClients, cfg.MaxUserClients), a.clients)
	}
}

func (c *console) showLists() {
	s := c.b.Stats()
	c.b.mu.Lock()
	users := len(c.b.accounts)
	c.b.mu.Unlock()
	servers := 0
	for _, p := range s.Pools {
		servers += p.ServersActive + p.ServersIdle + p.ServersUsed + p.ServersBeingCanceled + p.ServersLogin
	}
	peers := len(c.b.config().Peers)
	c.header("list items:i")
	for _, l := range []struct {
		name string
		n    int
	}{
		{"databases", len(s.Databases)},
		{"users", users},
		{"peers", peers},
		{"pools", len(s.Pools)},
		{"peer_pools", peers},
		{"free_clients", 0},
		{"used_clients", s.Clients},
		{"login_clients", s.Logins},
		{"free_servers", 0},
		{"used_servers", servers},
		{"dns_names", 0},
		{"dns_zones", 0},
		{"dns_queries", 0},
		{"dns_pending", 0},
	} {
		c.row(l.name, l.n)
	}
}

// showMem shows what things take that come and go, but not their contents.
func (c *console) showMem() {
	s := c.b.Stats()
	servers, buffers := 0, 0
	for _, p := range s.Pools {
		servers += p.ServersActive + p.ServersIdle + p.ServersUsed + p.ServersBeingCanceled
	}
	c.b.mu.Lock()
	loops, users := slices.Clone(c.b.loops), len(c.b.accounts)
	c.b.mu.Unlock()
	for _, l := range loops {
		l.call(func() { buffers += len(l.spare) })
	}
	c.header("name size:i used:i free:i memtotal:i")
	for _, m := range []struct {
		name             string
		size, used, free int
	}{
		{"user_cache", sizeOf[account](), users, 0},
		{"db_cache", sizeOf[database](), len(s.Databases), 0},
		{"pool_cache", sizeOf[pool](), len(s.Pools), 0},
		{"server_cache", sizeOf[server](), servers, 0},
		{"client_cache", sizeOf[client](), s.Clients - s.Consoles, 0},
		{"iobuf_cache", heldSize, 0, buffers},
	} {
		c.row(m.name, m.size, m.used, m.free, m.size*(m.used+m.free))
	}
}

func sizeOf[T any]() int { return int(reflect.TypeFor[T]().Size()) }

func (c *console) showPeers() {
	cfg := c.b.config()
	c.header("peer_id:i host port:i pool_size:i")
	for _, id := range slices.Sorted(maps.Keys(cfg.Peers)) {
		p := cfg.Peers[id]
		c.row(id, p.Host, cmp.Or(p.Port, 5432), cfg.PoolSize)
	}
}

func (c *console) showPeerPools() {
	c.header("peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active_cancel:i sv_login:i")
	for _, id := range slices.Sorted(maps.Keys(c.b.config().Peers)) {
		c.row(id, 0, 0, 0, 0) // a request is passed on by its own goroutine, which is not counted
	}
}

func (c *console) showState() {
	paused, suspended := c.b.paused.Load(), c.b.suspended.Load()
	c.header("key value")
	c.row("active", yes(!paused && !suspended))
	c.row("paused", yes(paused && !suspended))
	c.row("suspended", yes(suspended))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (c *console) showVersion() {
	c.header("version")
	c.row("pgbounce (console of PgBouncer " + consoleVersion + ")")
}

const help = `
	SHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
	SHOW PEERS|PEER_POOLS
	SHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
	SHOW DNS_HOSTS|DNS_ZONES
	SHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
	SET key = arg
	RELOAD
	PAUSE [<db>]
	RESUME [<db>]
	DISABLE <db>
	ENABLE <db>
	RECONNECT [<db>]
	KILL [<db>]
	KILL_CLIENT <client_id>
	SUSPEND
	SHUTDOWN
	SHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
	WAIT_CLOSE [<db>]`

func (c *console) showHelp() {
	var body []byte
	for _, f := range []string{"SNOTICE", "VNOTICE", "C00000", "MConsole usage", "D" + help} {
		body = append(append(body, f...), 0)
	}
	c.out = append(append(appendHeader(c.out, 'N', len(body)+1), body...), 0)
}
