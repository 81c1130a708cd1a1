package pgbounce

import (
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// A server is a connection to PostgreSQL. While it is linked it belongs to its
// client's loop, and while it is idle to the pool, whose lock guards its state.
type server struct {
	wire
	b    *Bouncer
	pool *pool

	client *client // while linked
	queue  outstanding
	chore  *chore // a query of our own, when nothing else is under way
	held   []byte // the begin of a message that has not wholly come
	rest   int    // how much of a message is still to come
	// passing tells that the rest is for the client.
	passing bool
	status  byte // I, T or E, as its last Z said
	copyIn  bool
	// unsynced tells that a Sync is to come: the implicit transaction is open
	// until then, with its locks and portals.
	unsynced bool
	// draining tells that its client is gone and what comes is thrown away.
	draining   bool
	drainSince time.Duration

	served  served
	unnamed *statement
	longOf  uint64 // the client of an unnamed statement that was not kept
	params  parameters

	state     serverState  // under the pool's lock
	dead      bool         // to be closed, not pooled
	stuck     bool         // it is to be given back once it took all bytes
	used      bool         // a client has had it
	clean     bool         // it was reset since its last use
	outdated  []*statement // statements to be closed before they are prepared again
	reason    string
	canceling int // cancel requests under way, under the pool's lock

	target    string // what it is connected to
	addr      net.Addr
	local     net.Addr
	key       cancelKey
	id        uint64
	connected time.Duration
	lifetime  time.Duration // its share of jitter included
	idleSince time.Duration
	linkedAt  time.Duration
	queryAt   time.Duration // when the query under way began, or 0
	xactAt    time.Duration
	readyAt   time.Duration // when it last became idle in a transaction
	tlsOn     bool
	epoch     uint64 // of its pool, RECONNECT counts it up
}

type serverState uint8

const (
	serverLogin serverState = iota
	serverIdle
	serverActive
	serverMoving        // from one loop to another
	serverBeingCanceled // done, but a cancel request is under way
	serverClosed
)

// A chore is a query of our own.
type chore struct {
	done func(*wireError)
	err  *wireError
	over bool
}

// run sends a query of our own, and calls done when the server is ready again.
func (s *server) run(sql string, done func(*wireError)) {
	s.chore = &chore{done: done}
	s.queryAt = s.loop.now
	s.unnamed = nil
	if err := s.write(appendQuery(nil, sql)); err != nil {
		s.lost(err)
	}
}

// started notes the begin of a query.
func (s *server) started() {
	now := s.loop.now
	if s.queryAt == 0 {
		s.queryAt = now
	}
	if s.status == 'I' && s.xactAt == 0 {
		s.xactAt = now
	}
}

// flow reads what the server sent, as long as the client takes it.
func (s *server) flow() {
	if c := s.client; c != nil && !s.pending() && c.readable && c.mayRead() {
		c.later() // it was held up by a full server
	}
	l := s.loop
	l.moved = nil
	if s.stuck && !s.pending() {
		s.stuck = false
		s.maybeRelease()
	}
	for i := 0; l.moved != s && s.readable && !s.shut; i++ {
		if c := s.client; c != nil && c.pending() {
			return
		}
		if i == 8 {
			s.later()
			return
		}
		buf := l.buf
		k := len(s.held)
		if k > len(buf)/2 {
			buf = make([]byte, k+bufSize)
		}
		n, err := s.read(buf[k:])
		if err == errAgain {
			return
		}
		if err != nil {
			s.lost(err)
			return
		}
		copy(buf, s.held)
		s.held = s.held[:0]
		s.pool.stats.fromServer.Add(int64(n))
		s.consume(buf[:k+n])
	}
}

// consume passes data on to the client.
func (s *server) consume(data []byte) {
	l := s.loop
	left := s.forward(data)
	if s.shut {
		l.out.reset()
		return
	}
	s.held = append(s.held[:0], left...)
	if len(left) == 0 && cap(s.held) > heldSize {
		s.held = nil
	}
	c := s.client
	if out := l.out.bytes(); c != nil && len(out) > 0 {
		c.pool.stats.sent.Add(int64(len(out)))
		if err := c.write(out); err != nil {
			l.out.reset()
			c.lost(err)
			return
		}
	}
	l.out.reset()
	if s.dead {
		s.end(s.reason)
		return
	}
	if c != nil && c.leaving {
		c.end(io.EOF)
		return
	}
	if ch := s.chore; ch != nil && ch.over {
		s.chore, s.queryAt = nil, 0
		ch.done(ch.err)
		if l.moved != s && s.draining {
			s.maybeRecover()
		}
		return
	}
	if c != nil {
		c.inside = s.rest > 0 && s.passing
		s.settle()
	}
	if c != nil && c.doubts && s.queue.unsure == 0 {
		l.later(c.resume)
	}
	s.maybeRelease()
}

// die has the server closed once what it said so far has been passed on.
func (s *server) die(reason string) {
	if !s.dead {
		s.dead, s.reason = true, reason
	}
}

// maybeRelease gives the server back if nothing of its client's is left on it.
func (s *server) maybeRelease() {
	if s.queue.n > 0 || s.queue.failed || s.copyIn || s.chore != nil || s.rest > 0 || len(s.held) > 0 {
		return
	}
	if s.client != nil && (s.status != 'I' || s.unsynced) {
		return
	}
	c := s.client
	switch {
	case c == nil:
		if s.draining {
			s.recovered()
		}
		return
	case c.rest > 0 || c.pinned || c.mode == Session:
		return
	case s.pending():
		s.stuck = true
		return
	}
	s.unlink()
	s.give()
	if !c.shut {
		if len(c.held) > 0 && !c.waiter.waiting && c.server == nil {
			c.loop.later(c.resume)
		} else if c.readable {
			c.later()
		}
	}
}

// unlink ends the link in good order.
func (s *server) unlink() {
	c := s.client
	s.client, c.server = nil, nil
	c.idleSince = s.loop.now
}

// give hands the server to the pool, after what has to be done first.
func (s *server) give() {
	if s.pool.awaitsCancel(s) {
		return // a cancel request under way would meet what is run next
	}
	cfg := s.b.config()
	if s.pool.mode == Session || cfg.ServerResetAlways {
		if !s.clean {
			s.clean = true
			s.run(cfg.ServerResetQuery, func(err *wireError) {
				if err != nil {
					s.end("reset query failed: " + err.message)
					return
				}
				s.give()
			})
			return
		}
	}
	s.clean = false
	s.idleSince = s.loop.now
	s.pool.give(s)
}

// drop empties the queue of a server that is closed.
func (s *server) drop() {
	for i := range s.queue.n {
		switch r := s.queue.at(i); {
		case r.kind == 'C' && r.how == injected && r.statement != nil:
			s.b.statements.release(r.statement)
		case r.kind == 'C' && r.how == faked && r.name != nil:
			s.b.statements.release(r.name.statement)
		}
	}
	s.queue.clear()
}

// lost is called when the connection to PostgreSQL is gone.
func (s *server) lost(err error) {
	if s.shut {
		return
	}
	reason := "server conn crashed?"
	if err != nil && !errors.Is(err, io.EOF) {
		reason = "server connection lost"
	}
	s.end(reason)
}

// end closes the server. A client that is linked is told, and leaves.
func (s *server) end(reason string) {
	if s.shut {
		return
	}
	s.b.logServer(s, "closing because: "+reason)
	s.close()
	c := s.client
	s.client = nil
	s.forgetAll()
	s.drop()
	s.pool.lose(s)
	if c != nil {
		c.server = nil
		if s.dead && s.chore == nil && strings.HasPrefix(reason, "server said") {
			// It was passed on; the connection ends as PostgreSQL's would have.
			c.endFlushed()
			return
		}
		c.fail(fatal("08P01", "%s", reason))
	}
}
