package pgbounce

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A parameter is one of a line of [databases], [users] or [peers].
type parameter[T any] struct {
	name string
	def  string                 // in PgBouncer's words
	why  string                 // it has no effect, "" if it has
	note string                 // what differs from PgBouncer
	set  func(*T, string) error // nil if it has no effect
}

var databaseKeys = []parameter[Database]{
	{name: "dbname", def: "the name the client gave", set: textOf(func(d *Database) *string { return &d.Name })},
	{name: "host", def: "unix_socket_dir", note: "not in PgBouncer: a host may have a port of its own, as in `a:5433`", set: setHosts},
	{name: "port", def: "5432", set: numberOf(1, 65535, func(d *Database) *int { return &d.Port })},
	{name: "user", def: "the client's", set: textOf(func(d *Database) *string { return &d.User })},
	{name: "password", def: "that of auth_file", set: textOf(func(d *Database) *string { return &d.Password })},
	{name: "auth_user", def: "that of [pgbouncer]", set: textOf(func(d *Database) *string { return &d.AuthUser })},
	{name: "auth_query", def: "that of [pgbouncer]", set: textOf(func(d *Database) *string { return &d.AuthQuery })},
	{name: "auth_dbname", def: "that of [pgbouncer]", set: textOf(func(d *Database) *string { return &d.AuthDatabase })},
	{name: "pool_size", def: "default_pool_size", set: limitOf(1, func(d *Database) *int { return &d.PoolSize })},
	{name: "min_pool_size", def: "that of [pgbouncer]", set: limitOf(0, func(d *Database) *int { return &d.MinPoolSize })},
	{name: "reserve_pool_size", def: "that of [pgbouncer]", set: limitOf(0, func(d *Database) *int { return &d.ReservePoolSize })},
	{name: "reserve_pool", def: "as reserve_pool_size", set: limitOf(0, func(d *Database) *int { return &d.ReservePoolSize })},
	{name: "connect_query", def: "none", set: textOf(func(d *Database) *string { return &d.ConnectQuery })},
	{name: "pool_mode", def: "that of [pgbouncer]", set: modeOf(func(d *Database) *Mode { return &d.Mode })},
	{name: "query_wait_timeout", def: "-1", why: "that of [pgbouncer] is for all databases"},
	{name: "load_balance_hosts", def: "round-robin", note: "a host that does not answer is passed over", set: setBalance},
	{name: "target_session_attrs", def: "any", why: "any server of the list is taken"},
	{name: "max_db_connections", def: "that of [pgbouncer]", set: limitOf(0, func(d *Database) *int { return &d.MaxServers })},
	{name: "max_db_client_connections", def: "that of [pgbouncer]", set: limitOf(0, func(d *Database) *int { return &d.MaxClients })},
	{name: "server_lifetime", def: "that of [pgbouncer]", set: timeOf(func(d *Database) *time.Duration { return &d.ServerLifetime })},
	{name: "client_encoding", def: "PostgreSQL's", set: setParameter("client_encoding")},
	{name: "datestyle", def: "PostgreSQL's", set: setParameter("datestyle")},
	{name: "timezone", def: "PostgreSQL's", set: setParameter("timezone")},
	{name: "application_name", def: "the client's", set: setParameter("application_name")},
	{
		name: "read_only", def: "none", note: "not in PgBouncer: the database that serves read-only transactions",
		set: textOf(func(d *Database) *string { return &d.ReadOnly }),
	},
}

var userKeys = []parameter[User]{
	{name: "pool_size", def: "that of the database", set: limitOf(1, func(u *User) *int { return &u.PoolSize })},
	{name: "reserve_pool_size", def: "that of the database", set: limitOf(0, func(u *User) *int { return &u.ReservePoolSize })},
	{name: "pool_mode", def: "that of the database", set: modeOf(func(u *User) *Mode { return &u.Mode })},
	{name: "max_user_connections", def: "that of [pgbouncer]", set: limitOf(0, func(u *User) *int { return &u.MaxServers })},
	{name: "max_user_client_connections", def: "that of [pgbouncer]", set: limitOf(0, func(u *User) *int { return &u.MaxClients })},
	{name: "query_timeout", def: "that of [pgbouncer]", set: timeOf(func(u *User) *time.Duration { return &u.QueryTimeout })},
	{name: "query_wait_timeout", def: "-1", why: "that of [pgbouncer] is for all users"},
	{name: "idle_transaction_timeout", def: "that of [pgbouncer]", set: timeOf(func(u *User) *time.Duration { return &u.IdleTransactionTimeout })},
	{name: "transaction_timeout", def: "that of [pgbouncer]", set: timeOf(func(u *User) *time.Duration { return &u.TransactionTimeout })},
	{name: "client_idle_timeout", def: "that of [pgbouncer]", set: timeOf(func(u *User) *time.Duration { return &u.ClientIdleTimeout })},
}

var peerKeys = []parameter[Peer]{
	{name: "host", def: "none: it is required", set: textOf(func(p *Peer) *string { return &p.Host })},
	{name: "port", def: "6432", set: numberOf(1, 65535, func(p *Peer) *int { return &p.Port })},
	{name: "pool_size", def: "default_pool_size", why: "cancel requests have their own limit"},
}

func (p *iniParser) database(name, value string) error {
	if name == "pgbouncer" {
		return errors.New("database pgbouncer is the console: want another name")
	}
	db := Database{Port: 5432}
	left, err := readConninfo(databaseKeys, value, &db)
	if err != nil {
		return fmt.Errorf("database %s: %w", name, err)
	}
	p.f.Config.Databases[name] = db
	p.warnAll("database "+name, left)
	return nil
}

func (p *iniParser) user(name, value string) error {
	var u User
	left, err := readConninfo(userKeys, value, &u)
	if err != nil {
		return fmt.Errorf("user %s: %w", name, err)
	}
	if p.f.Config.Users == nil {
		p.f.Config.Users = map[string]User{}
	}
	p.f.Config.Users[name] = u
	p.warnAll("user "+name, left)
	return nil
}

func (p *iniParser) peer(name, value string) error {
	id, err := decimal(name, 1, maxPeerID)
	if err != nil {
		return fmt.Errorf("peer %s: %w", name, err)
	}
	peer := Peer{Port: 6432}
	left, err := readConninfo(peerKeys, value, &peer)
	if err == nil && peer.Host == "" {
		err = errors.New("want a host")
	}
	if err != nil {
		return fmt.Errorf("peer %s: %w", name, err)
	}
	if p.f.Config.Peers == nil {
		p.f.Config.Peers = map[int]Peer{}
	}
	p.f.Config.Peers[id] = peer
	p.warnAll("peer "+name, left)
	return nil
}

func (p *iniParser) warnAll(whose string, left []string) {
	for _, l := range left {
		p.warn(whose + ": " + l)
	}
}

// readConninfo reads key=value pairs with spaces between them, and says what it
// left out. Its errors hold no values.
func readConninfo[T any](known []parameter[T], text string, to *T) (left []string, err error) {
	secret := false
	for {
		text = strings.TrimLeft(text, " \t")
		if text == "" {
			return left, nil
		}
		name, value, rest, err := cutPair(text)
		if err != nil {
			return left, err
		}
		text = rest
		i := slices.IndexFunc(known, func(k parameter[T]) bool { return k.name == name })
		switch {
		case i < 0 && secret:
			// What looks like a name may be the end of a password with a space.
			return left, errors.New("unknown parameter after the password, which needs quotes if it has a space")
		case i < 0:
			return left, fmt.Errorf("unknown parameter %s", name)
		case known[i].why == "":
			if err := known[i].set(to, value); err != nil {
				return left, fmt.Errorf("%s: %w", name, err)
			}
		case value != known[i].def:
			left = append(left, name+" has no effect: "+known[i].why)
		}
		secret = secret || name == "password"
	}
}

var errNoPair = errors.New("want key=value pairs")

// cutPair takes the first pair from a text that begins with one.
func cutPair(text string) (name, value, rest string, err error) {
	end := strings.IndexAny(text, "= \t")
	if end <= 0 {
		return "", "", "", errNoPair
	}
	name = text[:end]
	rest, ok := strings.CutPrefix(strings.TrimLeft(text[end:], " \t"), "=")
	if !ok || strings.IndexFunc(name, func(r rune) bool { return !isKeyRune(r) }) >= 0 {
		return "", "", "", errNoPair
	}
	rest = strings.TrimLeft(rest, " \t")
	if quoted, ok := strings.CutPrefix(rest, "'"); ok {
		if value, rest, err = unquote(quoted, '\''); err != nil {
			return "", "", "", fmt.Errorf("%s: %w", name, err)
		}
		if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			return "", "", "", fmt.Errorf("%s: want a space behind the quotes", name)
		}
	} else {
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		value, rest = rest[:end], rest[end:]
	}
	if value == "" {
		return "", "", "", fmt.Errorf("%s: no value", name)
	}
	return name, value, rest, nil
}

func textOf[T any](field func(*T) *string) func(*T, string) error {
	return func(t *T, value string) error {
		*field(t) = value
		return nil
	}
}

func numberOf[T any](low, high int, field func(*T) *int) func(*T, string) error {
	return func(t *T, value string) error {
		n, err := decimal(value, low, high)
		*field(t) = n
		return err
	}
}

// limitOf is a number that is not set if it is -1. A 0 that is one is negative
// in a Database or a User, where 0 is not set.
func limitOf[T any](low int, field func(*T) *int) func(*T, string) error {
	return func(t *T, value string) error {
		n, err := decimal(value, -1, maxNumber)
		switch {
		case err != nil || n >= 0 && n < low:
			return fmt.Errorf("want a whole number from %d on", low)
		case n <= 0:
			n = -1 - n
		}
		*field(t) = n
		return nil
	}
}

// timeOf is a time that is not set if it is 0. PgBouncer knows only whole
// seconds here.
func timeOf[T any](field func(*T) *time.Duration) func(*T, string) error {
	return func(t *T, value string) error {
		n, err := decimal(value, 0, maxNumber)
		*field(t) = time.Duration(n) * time.Second
		return err
	}
}

func modeOf[T any](field func(*T) *Mode) func(*T, string) error {
	return func(t *T, value string) (err error) {
		*field(t), err = parseMode(value)
		return err
	}
}

func parseMode(value string) (Mode, error) {
	for _, m := range []Mode{Session, Transaction, Statement} {
		if strings.EqualFold(value, m.String()) {
			return m, nil
		}
	}
	return 0, errors.New("want session, transaction or statement")
}

func setHosts(d *Database, value string) error {
	d.Hosts = strings.Split(value, ",")
	for i, h := range d.Hosts {
		d.Hosts[i] = strings.TrimSpace(h)
		if d.Hosts[i] == "" {
			return errors.New("an empty name in the list")
		}
	}
	return nil
}

func setBalance(d *Database, value string) error {
	switch value {
	case "disable", "round-robin":
		d.Failover = value == "disable"
		return nil
	}
	return errors.New("want disable or round-robin")
}

func setParameter(name string) func(*Database, string) error {
	return func(d *Database, value string) error {
		d.Parameters = maps.Clone(d.Parameters)
		if d.Parameters == nil {
			d.Parameters = map[string]string{}
		}
		d.Parameters[name] = value
		return nil
	}
}

const (
	maxNumber = 1<<31 - 1 // of a C int
	maxPeerID = 16383
)

// decimal reads a number of [databases], [users] or [peers].
func decimal(value string, low, high int) (int, error) {
	return parseNumber(value, 10, low, high)
}

// wholeNumber reads one of [pgbouncer], which is as C has it: 0x… and 0… are
// other bases.
func wholeNumber(value string, low, high int) (int, error) {
	if strings.ContainsAny(value, "_oO") || strings.HasPrefix(value, "0b") || strings.HasPrefix(value, "0B") {
		value = "" // they are Go's, not C's
	}
	return parseNumber(value, 0, low, high)
}

func parseNumber(value string, base, low, high int) (int, error) {
	n, err := strconv.ParseInt(value, base, 64)
	if err != nil || n < int64(low) || n > int64(high) {
		return 0, fmt.Errorf("want a whole number from %d to %d", low, high)
	}
	return int(n), nil
}
