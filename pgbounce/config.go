package pgbounce

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Mode is how long a client holds a server.
type Mode uint8

// The modes. The zero Mode, where a Database or a User has one, is the next
// wider one: a user's is its database's, a database's the Config's.
const (
	_ Mode = iota
	// Transaction gives the server back at the end of each transaction.
	Transaction
	// Session keeps the server until the client leaves.
	Session
	// Statement gives it back after each statement, and allows no
	// transactions of several.
	Statement
)

// String returns the mode's name in PgBouncer's files.
func (m Mode) String() string {
	switch m {
	case Transaction:
		return "transaction"
	case Session:
		return "session"
	case Statement:
		return "statement"
	}
	return ""
}

// Config is what a Bouncer is made from. The zero value works: it is one pool
// of 20 servers per database and user, in transaction mode, to the PostgreSQL
// at localhost, for whatever database a client names, without passwords.
//
// A duration of 0 is its default, and a negative one turns its timeout off.
type Config struct {
	// Databases are the databases that clients may name. The one named "*"
	// stands for all others.
	// Default: "*", the database of that name at localhost:5432.
	Databases map[string]Database

	// Users are settings of single users. None is needed to let a user in:
	// that is for Auth.
	Users map[string]User

	// Mode is how long a client holds a server.
	// Default: Transaction, where PgBouncer's is Session.
	Mode Mode

	// PoolSize is how many servers a pool, a pair of database and user, has
	// at most.
	// Default: 20.
	PoolSize int

	// MinPoolSize is how many servers a pool keeps open while it has clients,
	// or if its database has a User.
	// Default: 0.
	MinPoolSize int

	// ReservePoolSize is how many servers more a pool gets when a client has
	// waited for longer than ReservePoolTimeout.
	// Default: 0.
	ReservePoolSize int

	// ReservePoolTimeout is how long a client waits before the pool may use
	// its reserve.
	// Default: 5 s.
	ReservePoolTimeout time.Duration

	// MaxClients is how many clients are let in, those that log in included.
	// Default: 10,000.
	MaxClients int

	// MaxDatabaseServers, MaxUserServers, MaxDatabaseClients and
	// MaxUserClients are limits over the pools of one database or user.
	// Default: 0, which is none.
	MaxDatabaseServers int
	MaxUserServers     int
	MaxDatabaseClients int
	MaxUserClients     int

	// QueryWaitTimeout is how long a client may wait for a server before it
	// is disconnected.
	// Default: 120 s.
	QueryWaitTimeout time.Duration

	// QueryWaitNotify is after how long of waiting a client is told so in a
	// notice.
	// Default: 5 s.
	QueryWaitNotify time.Duration

	// CancelWaitTimeout is how long a cancel request may wait for its turn.
	// Default: 10 s.
	CancelWaitTimeout time.Duration

	// ClientLoginTimeout is how long a login may take.
	// Default: 60 s.
	ClientLoginTimeout time.Duration

	// ClientIdleTimeout is how long a client may stay without a query.
	// Default: -1, for ever.
	ClientIdleTimeout time.Duration

	// QueryTimeout is how long a query may run before its client and server
	// are disconnected.
	// Default: -1, for ever.
	QueryTimeout time.Duration

	// TransactionTimeout is how long a transaction may last.
	// Default: -1, for ever.
	TransactionTimeout time.Duration

	// IdleTransactionTimeout is how long a client may be idle inside a
	// transaction.
	// Default: -1, for ever.
	IdleTransactionTimeout time.Duration

	// ServerConnectTimeout is how long connecting and logging in to
	// PostgreSQL may take.
	// Default: 15 s.
	ServerConnectTimeout time.Duration

	// ServerLoginRetry is how long a pool waits after PostgreSQL refused it.
	// Default: 15 s.
	ServerLoginRetry time.Duration

	// ServerIdleTimeout is after how long of idling a server is closed.
	// Default: 600 s.
	ServerIdleTimeout time.Duration

	// ServerLifetime is at which age a server is closed when it is idle. A
	// tenth of it is spread at random, so that servers opened together are not
	// closed together.
	// Default: 3600 s.
	ServerLifetime time.Duration

	// ServerCheckDelay is after how long of idling a server is tried with
	// ServerCheckQuery before a client gets it.
	// Default: 30 s.
	ServerCheckDelay time.Duration

	// ServerCheckQuery tries a server. It must return no error.
	// Default: the empty query.
	ServerCheckQuery string

	// ServerResetQuery makes a server as new after a session.
	// Default: "DISCARD ALL".
	ServerResetQuery string

	// ServerResetAlways runs ServerResetQuery in all modes, for programs that
	// leave state behind in transactions. It costs a round trip each.
	// Default: false.
	ServerResetAlways bool

	// ServerRoundRobin uses the server that was idle for longest, not that
	// which was used last.
	// Default: false.
	ServerRoundRobin bool

	// RecoverTimeout is how long a server whose client vanished in the middle
	// of a query may take to be cancelled, drained and rolled back. After that
	// it is closed. Negative: it is closed at once, as PgBouncer does.
	// Default: 5 s.
	RecoverTimeout time.Duration

	// SuspendTimeout is how long SUSPEND and a Shutdown wait for buffers to
	// be flushed.
	// Default: 10 s.
	SuspendTimeout time.Duration

	// MaxPreparedStatements is how many prepared statements a server keeps in
	// transaction and statement mode, those in use at the moment aside.
	// Negative: statements are not tracked, and are lost between transactions.
	// Default: 200.
	MaxPreparedStatements int

	// TrackParameters are session parameters to be kept for each client beside
	// client_encoding, DateStyle, TimeZone, IntervalStyle,
	// standard_conforming_strings and application_name. Only what PostgreSQL
	// reports can be tracked.
	TrackParameters []string

	// IgnoreParameters are startup parameters to be dropped. Any other that is
	// not tracked is an error.
	IgnoreParameters []string

	// Pins says what becomes of SQL whose effect outlives a transaction.
	// Default: PinWarn.
	Pins Pins

	// DisablePQExec disconnects a client at its first simple query, because such
	// a query may be several statements, and one that is injected is one more.
	// Default: false.
	DisablePQExec bool

	// AutoDatabaseTimeout is after how long without clients and servers a
	// database is forgotten that is there because of "*", with what was counted
	// for it. One that is paused or disabled is kept.
	// Default: 3600 s.
	AutoDatabaseTimeout time.Duration

	// Auth says who may log in, and how.
	Auth Auth

	// ClientTLS and ServerTLS encrypt the two sides.
	ClientTLS TLS
	ServerTLS TLS

	// Router places transactions that name a shard.
	// Default: none, and naming a shard is an error.
	Router Router

	// Admins may use all commands of the console, and Watchers may look.
	Admins   []string
	Watchers []string

	// Admin is what the console needs of the program around it.
	Admin AdminHooks

	// Peers are the other processes that listen at the same address, by their
	// number, and PeerID, 1 to 16383, is this one's. A cancel request that
	// reaches the wrong process is passed on.
	Peers  map[int]Peer
	PeerID int

	// Loops is how many threads forward, at most. A further one starts when
	// those there are busy.
	// Default: GOMAXPROCS.
	Loops int

	// Log gets what happens. Default: slog.Default().
	Log *slog.Logger

	// QuietConnections leaves the coming and going of clients and servers out
	// of the log.
	QuietConnections bool

	// QuietErrors leaves out as well what clients are told when they are
	// disconnected. Without QuietConnections it has no effect.
	QuietErrors bool
}

// AdminHooks let the console do what only the program around a Bouncer can. A
// command whose hook is nil is answered with an error, except SHUTDOWN, which
// then is Shutdown.
type AdminHooks struct {
	// Reload reads the configuration anew and gives it to Bouncer.Reload.
	Reload func(context.Context) error
	// Settings are key, value, default, and yes or no for changeable.
	Settings func() [][4]string
	// Set changes one of them.
	Set func(key, value string) error
	// Stop ends the program: at once, or after "transactions" or "clients".
	Stop func(after string)
}

// A Database is where a database that clients name is to be found.
type Database struct {
	// Hosts are names, addresses, or folders with a Unix socket, each with a
	// colon and a port behind it if that is not Port. With several, servers are
	// spread over them by turns, and one that does not answer is passed over.
	// Default: localhost.
	Hosts []string

	// Failover has Hosts tried in their order for each server: the first that
	// answers serves. One that does not takes no longer than its part of
	// ServerConnectTimeout.
	// Default: false.
	Failover bool

	// Port is PostgreSQL's. Default: 5432.
	Port int

	// Name is the database's name there. Default: the one the client named.
	Name string

	// User and Password are for all clients of the database. With a User there
	// is one pool for all of them.
	// Default: those of the client.
	User     string
	Password string

	// AuthUser, AuthQuery and AuthDatabase are as in Auth, for this database.
	AuthUser     string
	AuthQuery    string
	AuthDatabase string

	// ReadOnly is the name in Config.Databases of what serves read-only
	// transactions of clients that ask for that, such as its replicas.
	// Default: this database.
	ReadOnly string

	// ConnectQuery is sent to each new server.
	ConnectQuery string

	// Parameters are sent to PostgreSQL as startup parameters, such as
	// client_encoding or search_path.
	Parameters map[string]string

	// Mode, PoolSize, MinPoolSize, ReservePoolSize, MaxServers, MaxClients and
	// ServerLifetime are the Config's if 0. A negative size or limit is 0.
	Mode            Mode
	PoolSize        int
	MinPoolSize     int
	ReservePoolSize int
	MaxServers      int
	MaxClients      int
	ServerLifetime  time.Duration
}

// A User is settings for one user.
type User struct {
	// Mode, PoolSize, ReservePoolSize, MaxServers, MaxClients and the timeouts
	// are those of the database or the Config if 0.
	Mode                   Mode
	PoolSize               int
	ReservePoolSize        int
	MaxServers             int
	MaxClients             int
	QueryTimeout           time.Duration
	TransactionTimeout     time.Duration
	IdleTransactionTimeout time.Duration
	ClientIdleTimeout      time.Duration
}

// A Peer is another process that serves the same address.
type Peer struct {
	// Host is a name, an address, or the folder of a Unix socket.
	Host string
	Port int
}

// Pins says what becomes of SQL in transaction and statement mode whose effect
// outlives its transaction: LISTEN, advisory locks of the session, temporary
// tables and cursors WITH HOLD.
type Pins uint8

const (
	// PinWarn passes it on and writes a warning to the log.
	PinWarn Pins = iota
	// PinServer lets the client keep its server until it leaves.
	PinServer
	// PinRefuse answers with an error.
	PinRefuse
	// PinIgnore passes it on, as PgBouncer does.
	PinIgnore
)

// A TLSMode is how much encryption is asked for, as in PostgreSQL's sslmode.
type TLSMode uint8

// The modes. As a client's, TLSAllow and TLSPrefer are the same, and
// TLSVerifyCA and TLSVerifyFull both ask for a certificate of a known
// authority.
const (
	TLSDisable TLSMode = iota
	TLSAllow
	TLSPrefer
	TLSRequire
	TLSVerifyCA
	TLSVerifyFull
)

var tlsModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// String returns the mode's name in PostgreSQL's and PgBouncer's files.
func (m TLSMode) String() string {
	if int(m) < len(tlsModes) {
		return tlsModes[m]
	}
	return ""
}

// TLS is the encryption of one side.
type TLS struct {
	Mode TLSMode

	// Config has the certificates: for clients, that of this program and in
	// ClientCAs those who sign the clients'; for servers, RootCAs, and the
	// Certificates that are shown to PostgreSQL.
	Config *tls.Config
}

// withDefaults returns the Config with each zero replaced by what it stands
// for, and each negative duration by 0.
func (c Config) withDefaults() (Config, error) {
	if c.Databases == nil {
		c.Databases = map[string]Database{"*": {}}
	}
	for _, n := range []struct {
		name      string
		value     *int
		low, high int
		def       int
	}{
		{"PoolSize", &c.PoolSize, 1, math.MaxInt32, 20},
		{"MinPoolSize", &c.MinPoolSize, 0, math.MaxInt32, 0},
		{"ReservePoolSize", &c.ReservePoolSize, 0, math.MaxInt32, 0},
		{"MaxClients", &c.MaxClients, 1, math.MaxInt32, 10_000},
		{"MaxDatabaseServers", &c.MaxDatabaseServers, 0, math.MaxInt32, 0},
		{"MaxUserServers", &c.MaxUserServers, 0, math.MaxInt32, 0},
		{"MaxDatabaseClients", &c.MaxDatabaseClients, 0, math.MaxInt32, 0},
		{"MaxUserClients", &c.MaxUserClients, 0, math.MaxInt32, 0},
		{"MaxPreparedStatements", &c.MaxPreparedStatements, -1, math.MaxInt32, 200},
		{"PeerID", &c.PeerID, 0, 16383, 0},
		{"Loops", &c.Loops, 0, 1024, 0},
	} {
		*n.value = cmp.Or(*n.value, n.def)
		if *n.value < n.low || *n.value > n.high {
			return c, fmt.Errorf("pgbounce: Config.%s is %d: want %d to %d", n.name, *n.value, n.low, n.high)
		}
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&c.ReservePoolTimeout, 5 * time.Second},
		{&c.QueryWaitTimeout, 120 * time.Second},
		{&c.QueryWaitNotify, 5 * time.Second},
		{&c.CancelWaitTimeout, 10 * time.Second},
		{&c.ClientLoginTimeout, 60 * time.Second},
		{&c.ClientIdleTimeout, 0},
		{&c.QueryTimeout, 0},
		{&c.TransactionTimeout, 0},
		{&c.IdleTransactionTimeout, 0},
		{&c.ServerConnectTimeout, 15 * time.Second},
		{&c.ServerLoginRetry, 15 * time.Second},
		{&c.ServerIdleTimeout, 600 * time.Second},
		{&c.ServerLifetime, 3600 * time.Second},
		{&c.ServerCheckDelay, 30 * time.Second},
		{&c.RecoverTimeout, 5 * time.Second},
		{&c.SuspendTimeout, 10 * time.Second},
		{&c.AutoDatabaseTimeout, 3600 * time.Second},
	} {
		*d.value = max(cmp.Or(*d.value, d.def), 0)
	}
	c.Mode = cmp.Or(c.Mode, Transaction)
	if c.Mode > Statement {
		return c, fmt.Errorf("pgbounce: Config.Mode is %d: want Transaction, Session or Statement", c.Mode)
	}
	if c.Pins > PinIgnore {
		return c, fmt.Errorf("pgbounce: Config.Pins is %d: want PinWarn, PinServer, PinRefuse or PinIgnore", c.Pins)
	}
	if c.ServerResetQuery == "" {
		c.ServerResetQuery = "DISCARD ALL"
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	for name, db := range c.Databases {
		switch {
		case name == "" || name == "pgbouncer":
			return c, fmt.Errorf("pgbounce: Config.Databases has %q: want another name", name)
		case db.Port < 0 || db.Port > math.MaxUint16:
			return c, fmt.Errorf("pgbounce: Config.Databases[%q].Port is %d: want 1 to 65535", name, db.Port)
		case db.Mode > Statement:
			return c, fmt.Errorf("pgbounce: Config.Databases[%q].Mode is %d: want a Mode", name, db.Mode)
		}
	}
	for name, u := range c.Users {
		if u.Mode > Statement {
			return c, fmt.Errorf("pgbounce: Config.Users[%q].Mode is %d: want a Mode", name, u.Mode)
		}
	}
	if c.ClientTLS.Mode != TLSDisable && (c.ClientTLS.Config == nil ||
		len(c.ClientTLS.Config.Certificates) == 0 && c.ClientTLS.Config.GetCertificate == nil && c.ClientTLS.Config.GetConfigForClient == nil) {
		return c, fmt.Errorf("pgbounce: Config.ClientTLS.Mode is %v: want a Config with a certificate", c.ClientTLS.Mode)
	}
	return c, c.Auth.check()
}

// database returns what is configured for a database's name.
func (c *Config) database(name string) (Database, bool) {
	db, ok := c.Databases[name]
	if !ok {
		db, ok = c.Databases["*"]
	}
	return db, ok
}

// size returns the first that is not 0, and 0 for a negative one.
func size(values ...int) int { return max(cmp.Or(values...), 0) }

// hosts returns the hosts to try for the n-th server, in their order.
func (d Database) hosts(n int) []string {
	if len(d.Hosts) == 0 {
		return []string{"localhost"}
	}
	if d.Failover {
		n = 0
	}
	n %= len(d.Hosts)
	return slices.Concat(d.Hosts[n:], d.Hosts[:n])
}

// address returns where one of the hosts is dialled, and its name.
func (d Database) address(host string) (network, addr, name string) {
	port := strconv.Itoa(cmp.Or(d.Port, 5432))
	if i := strings.LastIndexByte(host, ':'); i >= 0 && (strings.IndexByte(host, ':') == i || host[i-1] == ']') {
		if n, err := strconv.ParseUint(host[i+1:], 10, 16); err == nil && n > 0 {
			host, port = host[:i], host[i+1:]
		}
	}
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
		return "unix", filepath.Join(host, ".s.PGSQL."+port), host
	}
	host = strings.Trim(host, "[]")
	return "tcp", net.JoinHostPort(host, port), host
}

// same tells whether a server of one may serve the other.
func (d Database) same(o Database) bool {
	return slices.Equal(d.Hosts, o.Hosts) && d.Failover == o.Failover && d.Port == o.Port && d.Name == o.Name && d.User == o.User &&
		d.Password == o.Password && d.ConnectQuery == o.ConnectQuery && mapsEqual(d.Parameters, o.Parameters)
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || w != v {
			return false
		}
	}
	return true
}
