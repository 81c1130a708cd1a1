package pgbounce

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// consoleName is the database that leads to the console.
const consoleName = "pgbouncer"

// consoleVersion is PgBouncer's whose commands and columns these are.
const consoleVersion = "1.25.2"

// maxCommand is the longest message a console takes.
const maxCommand = 64 << 10

// A console is a session of somebody who asks, or tells, the Bouncer itself.
// It has a goroutine of its own.
type console struct {
	b     *Bouncer
	conn  net.Conn
	in    *bufio.Reader
	out   []byte // the answer so far
	err   error  // of a write
	user  string
	name  string // the client's application_name
	admin bool
	// skipping tells that an extended query was refused, and that nothing else
	// is answered before its Sync.
	skipping  bool
	suspended bool   // by this session
	then      func() // what to do once the answer is written

	id        uint64
	key       cancelKey
	connected time.Time

	// Under the lock of consoles:
	requested time.Time
	interrupt context.CancelCauseFunc // of the command that waits, or nil
}

// consoles are all sessions there are, by the numbers in their cancel keys.
type consoles struct {
	mu  sync.Mutex
	all map[uint32]*console
}

// add notes a session, with a key no client has: theirs lack the first bit.
func (s *consoles) add(c *console) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[uint32]*console{}
	}
	var b [8]byte
	for c.key.pid == 0 || s.all[c.key.pid] != nil {
		_, _ = rand.Read(b[:])
		c.key = cancelKey{pid: binary.BigEndian.Uint32(b[:]) | 1<<31, secret: string(b[4:])}
	}
	s.all[c.key.pid] = c
}

func (s *consoles) remove(c *console) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c.key.pid)
}

func (s *consoles) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

// errInterrupted ends a command that waits.
var errInterrupted = &wireError{severity: "ERROR", code: "57014", message: "canceling statement due to user request"}

// interrupt does what a cancel request asks for, and tells whether it was for a
// session of the console.
func (s *consoles) interrupt(key cancelKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.all[key.pid]
	if c == nil || !equal(c.key.secret, key.secret) {
		return false
	}
	if c.interrupt != nil {
		c.interrupt(errInterrupted)
	}
	return true
}

// kill ends a session.
func (s *consoles) kill(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		if c.id == id {
			_ = c.conn.Close()
			return true
		}
	}
	return false
}

// serveConsole answers the console's commands until the client leaves.
func (b *Bouncer) serveConsole(ctx context.Context, s *startup, conn net.Conn, inProcess bool, stop func() bool) error {
	admin, look := b.mayUseConsole(s.user, inProcess)
	if !look {
		return fatal("08P01", "not allowed")
	}
	now := time.Now()
	c := &console{
		b: b, conn: conn, in: bufio.NewReader(conn), user: s.user, admin: admin,
		id: b.nextID(), connected: now, requested: now,
	}
	for _, p := range s.others {
		if p.name == "application_name" {
			c.name = p.value
		}
	}
	b.consoles.add(c)
	defer b.consoles.remove(c)
	c.welcome()
	if c.flush(); c.err != nil {
		return c.err
	}
	if !stop() {
		return context.Cause(ctx)
	}
	_ = conn.SetDeadline(time.Time{})
	wake := context.AfterFunc(b.life, func() { _ = conn.SetDeadline(longAgo) })
	c.serve()
	wake()
	if c.suspended && b.suspended.Load() {
		b.log().Warn("pgbounce: the admin who said SUSPEND has left: RESUME")
		_ = b.Resume("")
	}
	if b.life.Err() != nil {
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		c.error(fatal("57P01", "pooler is shutting down"))
		c.flush()
	}
	return errHandedOver
}

var longAgo = time.Unix(1, 0)

// welcome is what a client is told after it has logged in. Its other startup
// parameters, which drivers send to any server, have no meaning here.
func (c *console) welcome() {
	c.out = append(appendHeader(c.out, 'R', 4), 0, 0, 0, 0)
	for _, p := range [][2]string{
		{"server_version", consoleVersion + "/bouncer"},
		{"client_encoding", "UTF8"},
		{"server_encoding", "UTF8"},
		{"DateStyle", "ISO"},
		{"TimeZone", "GMT"},
		{"integer_datetimes", "on"},
		{"standard_conforming_strings", "on"},
		{"is_superuser", "on"},
		{"application_name", c.name},
	} {
		c.out = appendParameter(c.out, p[0], p[1])
	}
	c.out = appendHeader(c.out, 'K', 4+len(c.key.secret))
	c.out = append(binary.BigEndian.AppendUint32(c.out, c.key.pid), c.key.secret...)
	c.out = appendReady(c.out, 'I')
}

// serve answers messages until the client leaves, or the Bouncer is closed.
func (c *console) serve() {
	for c.err == nil {
		kind, body, err := c.read()
		if err != nil {
			if e, ok := errors.AsType[*wireError](err); ok {
				c.error(e)
				c.flush()
			}
			return
		}
		switch {
		case kind == 'X':
			return
		case kind == 'S':
			c.skipping = false
			c.out = append(c.out, readyIdle...)
		case c.skipping || kind == 'H' || kind == 'd' || kind == 'c' || kind == 'f':
		case kind == 'Q':
			c.query(body)
		case kind == 'F':
			c.error(consoleError("function calls are not supported by admin console"))
			c.out = append(c.out, readyIdle...)
		case kind == 'P' || kind == 'B' || kind == 'D' || kind == 'E' || kind == 'C':
			c.error(consoleError("extended query protocol not supported by admin console"))
			c.skipping = true
		default:
			c.error(fatal("08P01", "unsupported packet type for admin console: %d", kind))
			c.flush()
			return
		}
		c.flush()
		if do := c.then; do != nil {
			c.then = nil
			do()
		}
	}
}

// read reads a message.
func (c *console) read() (kind byte, body []byte, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return 0, nil, err
	}
	size := messageSize(head[:]) - headerSize
	if size < 0 || size > maxCommand {
		return 0, nil, fatal("08P01", "invalid message length")
	}
	body = make([]byte, size)
	_, err = io.ReadFull(c.in, body)
	return head[0], body, err
}

func (c *console) query(body []byte) {
	sql, rest, ok := cstring(body)
	if !ok || len(rest) > 0 {
		c.error(consoleError("invalid string in message"))
	} else {
		c.b.consoles.mu.Lock()
		c.requested = time.Now()
		c.b.consoles.mu.Unlock()
		if !c.run(string(sql)) {
			return
		}
	}
	c.out = append(c.out, readyIdle...)
}

func (c *console) error(e *wireError) {
	c.out = appendError(c.out, 'E', e.severity, e.code, e.message)
}

// flush writes the answer.
func (c *console) flush() {
	if len(c.out) > 0 && c.err == nil {
		_, c.err = c.conn.Write(c.out)
	}
	if cap(c.out) > 2*bufSize {
		c.out = nil
	}
	c.out = c.out[:0]
}

// wait does what may take long. It ends early if the client leaves, or asks for
// that with a cancel request.
func (c *console) wait(do func(context.Context) error) error {
	c.flush()
	ctx, cancel := context.WithCancelCause(c.b.life)
	defer cancel(nil)
	c.interruptible(cancel)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		// A next command may come meanwhile, and stays where it is.
		if _, err := c.in.Peek(1); err != nil {
			cancel(err)
		}
	}()
	err := do(ctx)
	cause := context.Cause(ctx)
	_ = c.conn.SetReadDeadline(longAgo)
	<-watched
	_ = c.conn.SetReadDeadline(time.Time{})
	if c.b.life.Err() != nil {
		_ = c.conn.SetReadDeadline(longAgo)
	}
	c.interruptible(nil)
	if err != nil && cause != nil {
		return cause
	}
	return err
}

func (c *console) interruptible(by context.CancelCauseFunc) {
	c.b.consoles.mu.Lock()
	defer c.b.consoles.mu.Unlock()
	c.interrupt = by
}

// withTimeout is without one if it is 0.
func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
