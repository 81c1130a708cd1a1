package pgbounce_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A script is a conversation with PostgreSQL whose answers must not depend on
// what lies between. It leaves no transaction and no server state behind.
type script struct {
	name  string
	needs need
	// not says for a kind of route why the answer is another there.
	not  map[string]string
	play func(c *client)
}

// A need is what a script asks of its way to PostgreSQL.
type need uint8

const (
	block   need = 1 << iota // transaction blocks: not in statement mode
	session                  // server state that outlives a transaction
	names                    // prepared statements that outlive a batch
	still                    // several transactions on the same server: it would be right, but other, elsewhere
	bare                     // it logs in by itself
	large                    // megabytes, which nobody cuts into bytes
	own                      // errors that a pooler may write itself, without PostgreSQL's source lines
)

// nonceMark stands for a client's nonce in all that a script sends. A nonce
// is as long, so it can be put into the encoded bytes.
const nonceMark = "{n}"

// patience bounds each wait for an answer.
const patience = 20 * time.Second

// A client speaks the protocol by hand and writes down what it is told. Its
// methods do nothing after the first failure, which is the last line written.
// It is for one goroutine.
type client struct {
	player *player
	said   *[]string // shared by the clients of a script
	label  string
	own    bool // leave out PostgreSQL's source lines

	conn    net.Conn
	in      *bufio.Reader
	key     []byte // for a cancel request, empty before the login
	status  byte   // of the last ReadyForQuery
	writing chan error
	failed  bool
}

func (c *client) say(format string, args ...any) {
	*c.said = append(*c.said, c.label+fmt.Sprintf(format, args...))
}

func (c *client) fail(err error) {
	if err != nil && !c.failed {
		c.failed = true
		c.say("FAILED %v", err)
	}
}

// dial opens the connection.
func (c *client) dial() {
	conn, err := c.player.route.dial(c.player.ctx)
	if err != nil {
		c.fail(err)
		return
	}
	c.conn, c.in = conn, bufio.NewReaderSize(conn, 1<<16)
}

// startup begins a login: pairs are names and values, in this order.
func (c *client) startup(version uint32, pairs ...string) {
	body := binary.BigEndian.AppendUint32(nil, version)
	for _, s := range pairs {
		body = append(append(body, s...), 0)
	}
	c.packet(append(body, 0))
}

// packet sends a message without a type, as those before the login are.
func (c *client) packet(body []byte) {
	c.raw(append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...))
}

const protocol30 = 3 << 16

// login is a whole login, with further startup parameters.
func (c *client) login(pairs ...string) {
	c.dial()
	c.startup(protocol30, append([]string{"user", "postgres", "database", c.player.route.database}, pairs...)...)
	c.welcome()
}

// welcome reads the answer to a startup. Poolers may report the parameters in
// any order.
func (c *client) welcome() {
	first := len(*c.said)
	c.ready(1)
	slices.SortStableFunc((*c.said)[first:], func(a, b string) int {
		if strings.HasPrefix(a, c.label+"S ") && strings.HasPrefix(b, c.label+"S ") {
			return strings.Compare(a, b)
		}
		return 0
	})
}

// another is a second client of the script.
func (c *client) another(label string, pairs ...string) *client {
	d := &client{player: c.player, said: c.said, label: label + ": ", own: c.own, failed: c.failed}
	c.player.clients = append(c.player.clients, d)
	if !c.failed {
		d.login(pairs...)
	}
	return d
}

// send writes messages at once.
func (c *client) send(messages ...pgproto3.FrontendMessage) {
	var all []byte
	for _, m := range messages {
		var err error
		if all, err = m.Encode(all); err != nil {
			c.fail(err)
			return
		}
	}
	c.raw(all)
}

// raw writes bytes while the client goes on to read, as nobody must expect
// that a client reads nothing before all is written.
func (c *client) raw(b []byte) {
	c.written()
	if c.failed {
		return
	}
	b = bytes.ReplaceAll(b, []byte(nonceMark), []byte(c.player.nonce))
	c.writing = make(chan error, 1)
	cut, conn, done := c.player.cut, c.conn, c.writing
	conn.SetWriteDeadline(time.Now().Add(patience))
	write := func() error {
		for len(b) > 0 {
			n := len(b)
			if cut != nil {
				n = cut(n)
			}
			if _, err := conn.Write(b[:n]); err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	}
	if len(b) < 1<<13 {
		done <- write()
		return
	}
	go func() { done <- write() }()
}

// written waits for the last write. It may fail if the server has hung up,
// which reading tells as well.
func (c *client) written() {
	if c.writing != nil {
		<-c.writing
		c.writing = nil
	}
}

// message reads one message and writes it down.
func (c *client) message() (kind byte) {
	if c.failed {
		return 0
	}
	c.conn.SetReadDeadline(time.Now().Add(patience))
	var head [5]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe) {
			c.say("EOF")
			return 0
		}
		c.fail(err)
		return 0
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > 1<<28 {
		c.fail(fmt.Errorf("message %q has a length of %d", head[0], size))
		return 0
	}
	body := make([]byte, size-4)
	if _, err := io.ReadFull(c.in, body); err != nil {
		c.fail(fmt.Errorf("message %q of %d bytes ends early: %w", head[0], size, err))
		return 0
	}
	kind = head[0]
	switch kind {
	case 'K':
		c.key = bytes.Clone(body)
	case 'Z':
		c.status = body[0]
	}
	if c.player.tamper != nil {
		c.player.tamper(&head[0], body)
	}
	c.say("%s", describe(head[0], body, c.own))
	return kind
}

// describe returns a message as a line: all its bytes, or the beginning and a
// hash of all, without what no two sessions have in common.
func describe(kind byte, body []byte, own bool) string {
	switch {
	case kind == 'K': // process and secret
		return fmt.Sprintf("K of %d bytes", len(body))
	case kind == 'A' && len(body) >= 4: // begins with the sender's process
		body = body[4:]
	case own && (kind == 'E' || kind == 'N'):
		var kept []byte
		for field := range bytes.SplitSeq(body, []byte{0}) {
			if len(field) > 0 && !bytes.ContainsAny(field[:1], "FLR") {
				kept = append(append(kept, field...), 0)
			}
		}
		body = kept
	}
	if len(body) <= 400 {
		return fmt.Sprintf("%c %q", kind, body)
	}
	return fmt.Sprintf("%c %q… %d bytes %x", kind, body[:64], len(body), sha256.Sum256(body))
}

// read reads n messages.
func (c *client) read(n int) {
	for range n {
		c.message()
	}
}

// until reads up to a message of a kind.
func (c *client) until(kind byte) {
	for !c.failed {
		switch c.message() {
		case kind:
			return
		case 0:
			c.fail(fmt.Errorf("no %q before the end", kind))
		}
	}
}

// ready reads up to the nth ReadyForQuery. Nothing must be outstanding then,
// and if no transaction is open, the next one may be sent to another server.
func (c *client) ready(n int) {
	for range n {
		c.until('Z')
	}
	c.written()
	if c.status == 'I' && !c.failed && c.player.mover != nil {
		c.fail(c.player.mover.move())
	}
}

// do is a simple query and its answer.
func (c *client) do(sql string) {
	c.send(query(sql))
	c.ready(1)
}

// batch is messages of the extended protocol, a Sync, and the answer.
func (c *client) batch(messages ...pgproto3.FrontendMessage) {
	c.send(append(messages, sync)...)
	c.ready(1)
}

// end reads up to the end of the connection.
func (c *client) end() {
	for !c.failed && c.message() != 0 {
	}
}

// letter reads the one byte that answers a request for encryption.
func (c *client) letter() {
	if c.failed {
		return
	}
	c.conn.SetReadDeadline(time.Now().Add(patience))
	b, err := c.in.ReadByte()
	if err != nil {
		c.fail(err)
		return
	}
	c.say("letter %q", b)
}

// hangUp closes the connection without a word.
func (c *client) hangUp() {
	if !c.failed {
		c.written()
	}
	if c.conn != nil {
		c.conn.Close()
	}
	c.written()
}

// cancel asks for a cancel with a key, over a connection of its own, and waits
// until the other side has closed that.
func (c *client) cancel(key []byte) {
	if c.failed {
		return
	}
	d := &client{player: c.player, said: c.said, label: "cancel: "}
	d.dial()
	d.packet(append(binary.BigEndian.AppendUint32(nil, 80877102), key...))
	d.end()
	d.hangUp()
	c.failed = d.failed
}

// sleeps waits until the client's pg_sleep has begun.
func (c *client) sleeps() {
	ctx, stop := context.WithTimeout(c.player.ctx, patience)
	defer stop()
	const asleep = `select exists (select from pg_stat_activity
		where datname = current_database() and wait_event = 'PgSleep' and query like $1)`
	for found := false; !found && !c.failed; {
		c.fail(c.player.admin.QueryRow(ctx, asleep, "%"+c.player.nonce+"%").Scan(&found))
	}
}

// A player plays scripts on a route under one nonce. It is for one goroutine.
type player struct {
	ctx    context.Context
	route  *route
	nonce  string
	admin  *pgx.Conn // to PostgreSQL itself
	mover  *mover
	cut    func(n int) int // how much of n bytes to write at a time
	tamper func(kind *byte, body []byte)

	clients []*client
}

// play returns what a script was told.
func (p *player) play(s script) []string {
	var said []string
	c := &client{player: p, said: &said, own: s.needs&own != 0}
	p.clients = []*client{c}
	if _, err := p.admin.Exec(p.ctx, strings.ReplaceAll(resetSQL, nonceMark, p.nonce)); err != nil {
		c.fail(fmt.Errorf("the script before left a transaction open: %w", err))
		_, err = p.admin.Exec(p.ctx, strings.ReplaceAll(rescueSQL, nonceMark, p.nonce))
		c.fail(err)
		return said
	}
	if s.needs&still != 0 {
		defer func(m *mover) { p.mover = m }(p.mover)
		p.mover = nil
	}
	if s.needs&bare == 0 {
		c.login()
	}
	s.play(c)
	for _, c := range p.clients {
		if c.conn != nil {
			c.conn.SetWriteDeadline(time.Now().Add(patience))
			c.raw([]byte{'X', 0, 0, 0, 4})
			c.hangUp()
		}
	}
	return said
}

// fixtureSQL makes the tables of a nonce, resetSQL puts them back, and
// rescueSQL ends who does not let it, so that the next script can. Copies of a
// database have the same OIDs, which clients see.
const (
	fixtureSQL = `
		create table photo_{n} (id int primary key, who text not null default '{n}', likes int check (likes >= 0));
		create table changing_{n} (id int primary key, who text not null default '{n}', likes int);`
	resetSQL = `
		set client_min_messages = error;
		set lock_timeout = '5s';
		drop schema if exists made_{n} cascade;
		truncate photo_{n}, changing_{n};
		alter table changing_{n} alter likes type int;
		insert into photo_{n} (id, likes) select n, n * 10 from generate_series(1, 10) n;
		insert into changing_{n} (id, likes) values (1, 10);`
	rescueSQL = `
		select pg_terminate_backend(pid) from pg_locks
		where relation in ('photo_{n}'::regclass, 'changing_{n}'::regclass) and pid <> pg_backend_pid()`
)

// A mover takes the server that a client has just released, or brings back
// another in its place, so that the client's next transaction meets another.
type mover struct {
	conn *pgx.Conn
	in   bool
}

func (m *mover) move() error {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	sql := "begin"
	if m.in {
		sql = "rollback"
	}
	m.in = !m.in
	_, err := m.conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

// The messages, in fewer words.

var (
	sync  = &pgproto3.Sync{}
	flush = &pgproto3.Flush{}
)

func query(sql string) *pgproto3.Query { return &pgproto3.Query{String: sql} }

func parse(name, sql string, oids ...uint32) *pgproto3.Parse {
	return &pgproto3.Parse{Name: name, Query: sql, ParameterOIDs: oids}
}

// bind takes strings, in the text format, and nil.
func bind(portal, statement string, args ...any) *pgproto3.Bind {
	b := &pgproto3.Bind{DestinationPortal: portal, PreparedStatement: statement}
	for _, a := range args {
		if a == nil {
			b.Parameters = append(b.Parameters, nil)
		} else {
			b.Parameters = append(b.Parameters, []byte(a.(string)))
		}
	}
	return b
}

func execute(portal string, rows ...uint32) *pgproto3.Execute {
	e := &pgproto3.Execute{Portal: portal}
	if len(rows) > 0 {
		e.MaxRows = rows[0]
	}
	return e
}

func describeStatement(name string) *pgproto3.Describe {
	return &pgproto3.Describe{ObjectType: 'S', Name: name}
}

func describePortal(name string) *pgproto3.Describe {
	return &pgproto3.Describe{ObjectType: 'P', Name: name}
}

func closeStatement(name string) *pgproto3.Close { return &pgproto3.Close{ObjectType: 'S', Name: name} }

func closePortal(name string) *pgproto3.Close { return &pgproto3.Close{ObjectType: 'P', Name: name} }
func data(s string) *pgproto3.CopyData        { return &pgproto3.CopyData{Data: []byte(s)} }

var copyDone = &pgproto3.CopyDone{}

func copyFail(why string) *pgproto3.CopyFail { return &pgproto3.CopyFail{Message: why} }

// run binds a statement and executes it, in one go.
func run(statement string, args ...any) []pgproto3.FrontendMessage {
	return []pgproto3.FrontendMessage{bind("", statement, args...), describePortal(""), execute("")}
}

// list joins messages and lists of them.
func list(parts ...any) (all []pgproto3.FrontendMessage) {
	for _, p := range parts {
		switch p := p.(type) {
		case []pgproto3.FrontendMessage:
			all = append(all, p...)
		case pgproto3.FrontendMessage:
			all = append(all, p)
		default:
			panic(fmt.Sprintf("bug: %T in a list of messages", p))
		}
	}
	return all
}
