package pgbounce

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A socket is what SHOW CLIENTS, SERVERS, SOCKETS and FDS show of a connection.
type socket struct {
	kind           string // C or S
	user, database string
	replication    string
	state          string
	addr, local    net.Addr
	connected      time.Time
	requested      time.Time
	wait           time.Duration
	closing        bool // it ends once it is idle
	id, link       uint64
	pid            uint32
	tls            string
	params         parameters
	prepared       int

	fd, linkFD          int
	held, rest, pending int
}

func (s socket) busy() bool { return s.held > 0 || s.rest > 0 || s.pending > 0 }

// batch is how many connections are looked at in a row, while their loop does
// nothing else.
const batch = 256

// clientSockets returns all clients, those of the console included.
func (b *Bouncer) clientSockets() []socket {
	homes := map[*loop][]*client{}
	for _, c := range b.allClients() {
		l := c.home.Load()
		homes[l] = append(homes[l], c)
	}
	var all []socket
	for l, clients := range homes {
		for some := range slices.Chunk(clients, batch) {
			l.call(func() {
				for _, c := range some {
					if !c.shut {
						all = append(all, c.socket())
					}
				}
			})
		}
	}
	all = append(all, b.consoles.sockets()...)
	slices.SortFunc(all, func(x, y socket) int { return cmp.Compare(x.id, y.id) })
	return all
}

// socket runs on the client's loop.
func (c *client) socket() socket {
	s := socket{
		kind: "C", user: c.user, database: c.database, replication: c.pool.replicationKind(), state: "idle",
		addr: c.addr, local: c.local, connected: c.b.start.Add(c.connected), requested: c.b.start.Add(c.requested),
		closing: c.leaving || c.failure != nil, id: c.id, tls: c.tlsInfo(), params: c.params, prepared: len(c.stmts),
		fd: c.fd, linkFD: -1, held: len(c.held), rest: c.rest, pending: len(c.out),
	}
	now := c.b.clock()
	if c.waiter.waiting {
		s.state, s.wait = "waiting", now-c.requested
	} else if c.server != nil {
		s.state, s.link, s.linkFD = "active", c.server.id, c.server.fd
		if at := c.server.queryAt; at != 0 {
			s.wait = now - at
		}
	}
	return s
}

// serverSockets returns all servers that are logged in.
func (b *Bouncer) serverSockets() []socket {
	homes := map[*loop][]*server{}
	for _, p := range b.allPools() {
		p.mu.Lock()
		for _, s := range p.all {
			homes[s.loop] = append(homes[s.loop], s)
		}
		p.mu.Unlock()
	}
	var all []socket
	for l, servers := range homes {
		for some := range slices.Chunk(servers, batch) {
			l.call(func() {
				for _, s := range some {
					if socket, ok := s.socket(l); ok {
						all = append(all, socket)
					}
				}
			})
		}
	}
	slices.SortFunc(all, func(x, y socket) int { return cmp.Compare(x.id, y.id) })
	return all
}

// socket runs on a loop, which the server may have left. Then little is known
// of it: it is on its way to a client. It is not ok if the server is closed.
func (s *server) socket(l *loop) (k socket, ok bool) {
	p := s.pool
	now, delay := s.b.clock(), s.b.config().ServerCheckDelay
	p.mu.Lock()
	state, here, epoch := s.state, s.loop == l && s.state != serverMoving, p.epoch.Load()
	k = socket{
		kind: "S", user: p.as, database: p.db.name, replication: p.replicationKind(), state: "active",
		addr: s.addr, local: s.local, connected: s.b.start.Add(s.connected), requested: s.b.start.Add(s.connected),
		closing: s.epoch != epoch, id: s.id, pid: s.key.pid, fd: -1, linkFD: -1,
	}
	switch {
	case state == serverIdle && delay > 0 && now-s.idleSince > delay:
		k.state = "used"
	case state == serverIdle:
		k.state = "idle"
	case state == serverBeingCanceled:
		k.state = "being_canceled"
	}
	p.mu.Unlock()
	if state == serverClosed || !here {
		return k, state != serverClosed
	}
	if s.shut {
		return k, false
	}
	k.closing = k.closing || s.dead
	k.tls, k.params, k.prepared = s.tlsInfo(), s.params, len(s.served.used)
	k.fd, k.held, k.rest, k.pending = s.fd, len(s.held), s.rest, len(s.out)
	if s.linkedAt != 0 {
		k.requested = s.b.start.Add(max(s.linkedAt, s.queryAt))
	}
	if s.queryAt != 0 {
		k.wait = now - s.queryAt
	}
	if c := s.client; c != nil {
		k.link, k.linkFD = c.id, c.fd
	}
	return k, true
}

// sockets returns the sessions of the console.
func (s *consoles) sockets() (all []socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		k := socket{
			kind: "C", user: c.user, database: consoleName, replication: "none", state: "active",
			addr: c.conn.RemoteAddr(), local: c.conn.LocalAddr(), connected: c.connected, requested: c.requested,
			id: c.id, params: parameters{names: []string{"application_name"}, values: []string{c.name}}, fd: -1, linkFD: -1,
		}
		if tc, ok := c.conn.(*tls.Conn); ok {
			k.tls = tlsInfo(tc)
		}
		all = append(all, k)
	}
	return all
}

// replicationKind is what PgBouncer calls the startup parameter's value.
func (p *pool) replicationKind() string {
	switch p.replication {
	case "":
		return "none"
	case "database":
		return "logical"
	}
	return "physical"
}

// tlsInfo is the version and the cipher, or "" without TLS.
func (w *wire) tlsInfo() string {
	if w.tls == nil {
		return ""
	}
	return tlsInfo(w.tls)
}

func tlsInfo(conn *tls.Conn) string {
	s := conn.ConnectionState()
	return strings.ReplaceAll(tls.VersionName(s.Version), "TLS ", "TLSv") + "/" + tls.CipherSuiteName(s.CipherSuite)
}

// value returns the value of a parameter, "" if it is not known.
func (p parameters) value(name string) string {
	for i, n := range p.names {
		if i < len(p.values) && strings.EqualFold(n, name) {
			return p.values[i]
		}
	}
	return ""
}

// hostPort is how PgBouncer writes an address: that of a Unix socket is the
// word, and the port that is the end of its name.
func hostPort(a net.Addr) (host string, port int) {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.String(), a.Port
	case *net.UnixAddr:
		port, _ = strconv.Atoi(strings.TrimPrefix(filepath.Ext(a.Name), "."))
		return "unix", port
	case nil:
		return "", 0
	}
	return a.String(), 0
}

// pointer is what links a client and a server in SHOW. PgBouncer's is an
// address in memory.
func pointer(id uint64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("%#x", id)
}

const socketColumns = "type user database replication state addr port:i local_addr local_port:i connect_time request_time " +
	"wait:i wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i id:i"

func (s socket) row() []any {
	addr, port := hostPort(s.addr)
	local, localPort := hostPort(s.local)
	if addr == "unix" {
		// One end has a name, and both show its port.
		port = max(port, localPort)
		localPort = port
	}
	return []any{
		s.kind, s.user, s.database, s.replication, s.state, addr, port, local, localPort, s.connected, s.requested,
		int64(s.wait / time.Second), (s.wait % time.Second).Microseconds(), s.closing, pointer(s.id), pointer(s.link), s.pid,
		s.tls, s.params.value("application_name"), s.prepared, s.id,
	}
}

func (c *console) showClients() {
	c.header(socketColumns)
	for _, k := range c.b.clientSockets() {
		c.row(k.row()...)
	}
}

func (c *console) showServers() {
	c.header(socketColumns)
	for _, k := range c.b.serverSockets() {
		c.row(k.row()...)
	}
}

// showSockets shows clients and servers with what they have not passed on yet.
func (c *console) showSockets(which func(socket) bool) {
	c.header(socketColumns + " recv_pos:i pkt_pos:i pkt_remain:i send_pos:i send_remain:i pkt_avail:i send_avail:i")
	for _, k := range append(c.b.clientSockets(), c.b.serverSockets()...) {
		if !which(k) {
			continue
		}
		prefix := "cl_"
		if k.kind == "S" {
			prefix = "sv_"
		}
		k.state = prefix + k.state
		c.row(append(k.row(), k.held, 0, k.rest, 0, 0, k.held, k.pending)...)
	}
}

// showFDs shows no secrets: sockets cannot be taken over by another process, so
// that nobody has a use for them.
func (c *console) showFDs() {
	c.header("fd:i task user database addr port:i cancel:q link:i client_encoding std_strings datestyle timezone password " +
		"scram_client_key:b scram_server_key:b")
	for _, k := range append(c.b.clientSockets(), c.b.serverSockets()...) {
		task := "client"
		if k.kind == "S" {
			task = "server"
		}
		addr, port := hostPort(k.addr)
		c.row(k.fd, task, k.user, k.database, addr, port, nil, max(k.linkFD, 0), k.params.value("client_encoding"),
			k.params.value("standard_conforming_strings"), k.params.value("DateStyle"), k.params.value("TimeZone"), nil, nil, nil)
	}
}
