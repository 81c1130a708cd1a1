package pgbounce

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// A client is a connection of somebody who wants to use PostgreSQL. All of it
// belongs to its loop.
type client struct {
	wire
	b      *Bouncer
	pool   *pool
	server *server // while they are linked

	held []byte // what was read and not yet forwarded
	// rest is how much of the message being passed on is still to come, and
	// drop that it is not to be passed on.
	rest int
	drop bool

	waiter  waiter
	stmts   map[string]*named
	unnamed *statement
	params  parameters
	route   route

	mode     Mode
	mapping  bool // statements are kept for it, under other names on servers
	warned   bool // it was told of pins
	login    credentials
	canceled bool // while a server was on its way
	inside   bool // a message from the server is half passed on
	pinned   bool // it keeps its server until it leaves
	leaving  bool
	doubts   bool       // it waits for answers about names
	skipping bool       // it has got an error, and nothing more before its Sync
	failure  *wireError // what ends it, once its answer is written
	refusal  *wireError // what its next request is answered with

	home      atomic.Pointer[loop] // its loop, for others to know
	release   func()               // of its seat
	addr      net.Addr
	local     net.Addr
	key       cancelKey
	user      string
	database  string
	tlsOn     bool
	id        uint64
	connected time.Duration
	requested time.Duration // when it began to wait or to run
	idleSince time.Duration
	parses    uint64
}

// A waiter is a client's place in its pool's queue.
type waiter struct {
	pool    *pool
	waiting bool // as its loop knows

	// Under the pool's lock:
	prev, next *client
	queued     bool
	since      time.Duration
	notified   bool
}

// flow reads what the client sent, as long as there is somewhere to put it.
func (c *client) flow() {
	if s := c.server; s != nil && !c.pending() && s.readable {
		s.flow()
	}
	if c.failure != nil && !c.pending() {
		c.end(nil)
		return
	}
	if (c.waiter.waiting || c.doubts) && (c.ended || c.mem != nil && c.mem.ended()) {
		c.lost(io.EOF) // nobody waits any more
		return
	}
	for i := 0; c.readable && c.mayRead(); i++ {
		if i == 4 {
			c.later()
			return
		}
		if !c.pull() {
			return
		}
	}
}

func (c *client) mayRead() bool {
	if c.shut || c.leaving || c.failure != nil || c.waiter.waiting || c.doubts || c.b.suspended.Load() {
		return false
	}
	if s := c.server; s != nil {
		return !s.pending() && s.chore == nil && s.queue.n < maxOutstanding
	}
	return !c.pending()
}

// pull reads once and forwards it. It tells whether there may be more.
func (c *client) pull() bool {
	l := c.loop
	buf := l.buf
	if c.server == nil {
		buf = buf[:heldSize] // what waits for a server is kept
	}
	var data []byte
	if k := len(c.held); k > len(buf)/2 {
		// A long Parse: it grows where it is.
		c.held = append(c.held, make([]byte, max(k, bufSize/2))...)
		n, err := c.read(c.held[k:])
		c.held = c.held[:k+n]
		if err != nil {
			c.readError(err)
			return false
		}
		data = c.held
		c.pool.stats.received.Add(int64(n))
	} else {
		n, err := c.read(buf[k:])
		if err != nil {
			c.readError(err)
			return false
		}
		copy(buf, c.held)
		data = buf[:k+n]
		c.pool.stats.received.Add(int64(n))
	}
	c.consume(data)
	return true
}

func (c *client) readError(err error) {
	if err != errAgain {
		c.lost(err)
	}
}

// consume forwards data and holds what is left of it.
func (c *client) consume(data []byte) {
	l := c.loop
	left := c.forward(data)
	if c.shut {
		l.out.reset()
		return
	}
	if out := l.out.bytes(); len(out) > 0 {
		if s := c.server; s != nil {
			if err := s.write(out); err != nil {
				l.out.reset()
				s.lost(err)
				return
			}
		}
		l.out.reset()
	}
	// Only now: what was written may lie in what is held.
	c.hold(left)
	if err := c.refusal; err != nil {
		c.refusal = nil
		c.refuse(err)
		return
	}
	switch {
	case c.failure != nil:
		c.fail(c.failure)
	case c.leaving:
		c.end(io.EOF)
	case c.server != nil && c.rest == 0:
		// The answer may have come before the last of the message.
		c.server.maybeRelease()
	}
}

// heldSize is the buffer of a client that waits.
const heldSize = 4096

func (c *client) hold(left []byte) {
	if len(left) == 0 {
		c.free()
		return
	}
	if cap(c.held) < len(left) {
		c.free()
		if len(left) <= heldSize {
			c.held = c.loop.buffer()
		}
	}
	c.held = append(c.held[:0], left...)
}

func (c *client) free() {
	if cap(c.held) == heldSize {
		c.loop.spare = append(c.loop.spare, c.held[:0])
	}
	c.held = nil
}

// buffer returns an empty one of heldSize.
func (l *loop) buffer() []byte {
	if n := len(l.spare); n > 0 {
		buf := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return buf
	}
	return make([]byte, 0, heldSize)
}

// forward puts messages into the loop's builder, and what is to be remembered
// of them into the server's queue. It returns what has to wait: the begin of a
// message, or everything if there is no server.
func (c *client) forward(p []byte) []byte {
	out := &c.loop.out
	for len(p) > 0 {
		if c.rest > 0 {
			n := min(c.rest, len(p))
			if !c.drop && c.server != nil {
				out.add(p[:n])
			}
			c.rest -= n
			p = p[n:]
			continue
		}
		if len(p) < headerSize {
			return p
		}
		size := messageSize(p)
		if err := checkFrontend(p[0], size); err != nil {
			c.failure = err
			return nil
		}
		if p[0] == 'Q' && c.b.config().DisablePQExec {
			c.failure = fatal("08P01", "PQexec disallowed")
			return nil
		}
		if c.server == nil {
			switch n, done := c.alone(p, size); {
			case c.leaving || c.shut:
				return nil
			case done:
				p = p[n:]
				continue
			case n < 0:
				return p
			}
			if !c.link(p[:min(size, len(p))]) {
				return p
			}
		}
		if c.server.queue.n >= maxOutstanding {
			return p
		}
		n := c.message(p, size)
		if n == 0 {
			return p
		}
		if n < 0 || c.failure != nil {
			return nil
		}
		p = p[n:]
	}
	return nil
}

// answer writes to the client what no server says.
func (c *client) answer(p []byte) {
	if err := c.write(p); err != nil {
		c.lost(err)
	}
	c.pool.stats.sent.Add(int64(len(p)))
}

// link gets a server for what p begins. If there is none now, or it has to be
// made ready, the client goes on later, in linked.
func (c *client) link(p []byte) bool {
	pool, err := c.target(p)
	if err != nil {
		c.refusal = err
		return false
	}
	if err := pool.failing(); err != nil {
		c.failure = err
		return false
	}
	c.requested = c.loop.now
	s := pool.take(c)
	if s == nil {
		return false
	}
	return c.begin(s)
}

// linked goes on with a server that the pool got for a client that waited.
func (c *client) linked(s *server) {
	defer c.loop.guard("linked", func() { c.lost(errors.New("internal error")) })
	if c.canceled {
		c.canceled = false
		s.pool.give(s)
		c.refuse(errCanceled)
		return
	}
	if c.begin(s) {
		c.resume()
	}
}

// resume goes on with what is held.
func (c *client) resume() {
	if c.shut || c.waiter.waiting || c.failure != nil || c.server != nil && c.server.chore != nil {
		return
	}
	c.doubts = false
	c.consume(c.held)
	if !c.shut && c.readable {
		c.later()
	}
}

// begin links a server, and tells whether it may be used at once.
func (c *client) begin(s *server) bool {
	c.server, s.client = s, c
	now := c.loop.now
	s.linkedAt, s.queryAt, s.used = now, 0, true
	waited := now - c.requested
	s.pool.stats.waited(waited)
	return c.check(s)
}

// check tries a server that was idle for long, and makes its parameters the
// client's. It returns false if that is under way.
func (c *client) check(s *server) bool {
	now := c.loop.now
	if delay := c.b.config().ServerCheckDelay; delay > 0 && now-s.idleSince > delay && s.idleSince != 0 {
		s.idleSince = 0
		s.run(c.b.config().ServerCheckQuery, func(err *wireError) {
			if err != nil {
				s.end("server check failed: " + err.message)
				return
			}
			c.goOn()
		})
		return false
	}
	s.idleSince = 0
	if sql := c.params.differ(&s.params); sql != "" {
		s.run(sql, func(err *wireError) {
			if err != nil {
				c.fail(fatal(err.code, "%s", err.message))
				return
			}
			c.params.adopt(c, &s.params)
			c.goOn()
		})
		return false
	}
	return true
}

// goOn is called when a chore before the link's use is done.
func (c *client) goOn() {
	if s := c.server; s != nil && !c.shut && c.check(s) {
		c.resume()
	}
}

// fail tells the client why it is disconnected, and ends it.
func (c *client) fail(err *wireError) {
	if c.shut {
		return
	}
	c.failure = err
	c.b.logError(c, err.message)
	if c.waiter.waiting {
		c.waiter.pool.leave(c)
	}
	if s := c.server; s != nil {
		s.abandon()
	}
	if c.inside {
		c.end(nil) // in the middle of a message there is no saying it
		return
	}
	if err := c.write(appendError(nil, 'E', err.severity, err.code, err.message)); err != nil {
		c.end(nil)
		return
	}
	c.endFlushed()
}

// endFlushed ends the client once it has taken all, and gives it some time for
// that.
func (c *client) endFlushed() {
	if !c.pending() {
		c.end(nil)
		return
	}
	if c.failure == nil {
		c.failure = fatal("08P01", "server conn crashed?")
	}
	time.AfterFunc(time.Second, func() { c.home.Load().do(func() { c.end(nil) }) })
}

// lost is called when the connection is gone.
func (c *client) lost(err error) {
	if c.shut {
		return
	}
	reason := "client unexpected eof"
	if !errors.Is(err, io.EOF) {
		reason = "client connection lost"
	}
	c.b.logClient(c, "closing because: "+reason)
	c.end(err)
}

// end takes the client out of everything. A server in the middle of something
// is made good again by itself.
func (c *client) end(error) {
	if c.shut {
		return
	}
	c.close()
	c.free()
	if c.waiter.waiting {
		c.waiter.pool.leave(c)
	}
	if s := c.server; s != nil {
		s.abandon()
	}
	for _, n := range c.stmts {
		c.b.statements.release(n.statement)
	}
	c.stmts, c.unnamed = nil, nil
	c.b.gone(c)
}
