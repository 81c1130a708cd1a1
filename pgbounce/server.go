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
	rest   int    // how much of a message being passed on is still to come
	status byte   // I, T or E, as its last Z said
	copyIn bool
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
		return
	}
	if c != nil && c.doubts && s.queue.unsure == 0 {
		l.later(c.resume)
	}
	s.maybeRelease()
}

// whole are the messages of which all must be here to handle them. Of all
// others the header is enough.
func wholeBackend(kind byte, size int) bool {
	switch kind {
	case 'Z', 'S', 'C', 'K', 'R':
		return true
	case 'E', 'N':
		return size <= maxNames
	}
	return false
}

// forward puts messages for the client into the loop's builder. It returns the
// begin of a message of which more must come first.
func (s *server) forward(p []byte) []byte {
	out := &s.loop.out
	for len(p) > 0 {
		if s.rest > 0 {
			n := min(s.rest, len(p))
			if s.client != nil && s.chore == nil {
				out.add(p[:n])
			}
			s.rest -= n
			p = p[n:]
			continue
		}
		if len(p) < headerSize {
			return p
		}
		size := messageSize(p)
		if size <= 4 || size > maxMessage {
			s.die("invalid message length from server")
			return nil
		}
		if wholeBackend(p[0], size) && len(p) < size {
			if size > maxStatement {
				s.die("server message too long")
				return nil
			}
			return p
		}
		n := min(size, len(p))
		if s.message(p[:n], p[0], size) && s.client != nil {
			out.add(p[:n])
		}
		s.rest = size - n
		p = p[n:]
		if s.shut || s.dead {
			return nil
		}
	}
	return nil
}

// die has the server closed once what it said so far has been passed on.
func (s *server) die(reason string) {
	if !s.dead {
		s.dead, s.reason = true, reason
	}
}

// message handles a message, and tells whether the client is to see it.
func (s *server) message(p []byte, kind byte, size int) bool {
	if s.chore != nil {
		return s.choreMessage(p, kind, size)
	}
	q := &s.queue
	r := q.first()
	for r != nil && r.kind == 'c' {
		q.pop()
		r = q.first()
	}
	var expected bool
	switch kind {
	case '1':
		expected = r != nil && r.kind == 'P'
	case '2':
		expected = r != nil && r.kind == 'B'
	case '3':
		expected = r != nil && r.kind == 'C'
	case 'T', 'n':
		expected = r != nil && r.kind == 'D'
	case 'C', 'I', 's':
		if kind == 'C' {
			s.tag(p[headerSize:])
		}
		s.copyIn = false
		expected = r != nil && r.kind == 'E'
	case 'Z':
		return s.ready(p[headerSize])
	case 'E':
		return s.errorResponse(p, size)
	case 'S':
		return s.parameter(p[headerSize:])
	case 'N', 'A':
		return true
	case 'G':
		s.copyIn = r == nil || !q.copying()
		if s.copyIn && s.draining {
			s.failCopy(r)
		}
		return true
	default: // D d H W V t c: their requests are not done yet
		return true
	}
	if !expected {
		return true
	}
	visible := r.how != injected
	if r.kind == 'C' && r.how == injected && r.statement != nil {
		s.b.statements.release(r.statement)
	}
	q.pop()
	if visible {
		// It comes before what is answered by us now.
		if s.client != nil {
			s.loop.out.add(p)
		}
		s.settleInto(&s.loop.out)
		return false
	}
	s.settleInto(&s.loop.out)
	return false
}

// settle answers requests that are ours to answer, when nothing is under way
// before them.
func (s *server) settle() {
	if r := s.queue.first(); r == nil || r.how != faked {
		return
	}
	var b builder
	s.settleInto(&b)
	if c := s.client; c != nil {
		c.answer(b.bytes())
	}
}

func (s *server) settleInto(out *builder) {
	for {
		r := s.queue.first()
		if r == nil || r.how != faked {
			return
		}
		if s.client != nil {
			out.add(s.fake(r))
		}
		if r.kind == 'C' && r.name != nil {
			s.b.statements.release(r.name.statement)
		}
		s.queue.pop()
	}
}

func (s *server) fake(r *request) []byte {
	switch r.kind {
	case 'P':
		return parseComplete
	case 'B':
		return bindComplete
	case 'C':
		return closeComplete
	case 'D':
		return noData
	case 'E':
		return setTag
	case 'Q':
		return appendReady(append([]byte(nil), setTag...), s.status)
	}
	return nil
}

var setTag = appendTag(nil, "SET")

// ready handles a Z.
func (s *server) ready(status byte) bool {
	q := &s.queue
	now := s.loop.now
	s.copyIn = false
	for {
		r := q.first()
		if r == nil {
			break
		}
		kind := r.kind
		if kind == 'S' || kind == 'Q' || kind == 'F' {
			q.pop()
			break
		}
		q.pop()
	}
	for r := q.first(); r != nil && r.kind == 'c'; r = q.first() {
		q.pop()
	}
	s.status = status
	if s.queryAt != 0 {
		s.pool.stats.ran(now - s.queryAt)
		s.queryAt = 0
		if q.n > 0 {
			s.queryAt = now
		}
	}
	if status == 'I' {
		if s.xactAt != 0 {
			s.pool.stats.transacted(now - s.xactAt)
			s.xactAt = 0
			if q.n > 0 {
				s.xactAt = now
			}
		}
	} else {
		s.readyAt = now
	}
	if q.n == 0 {
		s.served.begin = s.served.turn
	}
	c := s.client
	if c == nil {
		return false
	}
	if c.pool.mode == Statement && status != 'I' {
		s.loop.out.add(appendError(nil, 'E', "FATAL", "08P01", "transaction blocks not allowed in statement pooling mode"))
		c.leaving = true
		return false
	}
	if q.n > 0 && q.first().how == faked {
		s.loop.out.add(appendReady(nil, status))
		s.settleInto(&s.loop.out)
		return false
	}
	return true
}

// errorResponse handles an E.
func (s *server) errorResponse(p []byte, size int) bool {
	q := &s.queue
	r := q.first()
	var e *wireError
	if len(p) == size {
		e = parseError(p[headerSize:])
	}
	if e != nil && (e.severity == "FATAL" || e.severity == "PANIC") {
		s.die("server said: " + e.message)
		return s.client != nil
	}
	if r == nil || r.kind == 'Q' || r.kind == 'F' || r.kind == 'S' {
		s.copyIn = false
		return true
	}
	n := r.name
	s.stale(e, n)
	s.copyIn = false
	q.fail(func(r *request, ran bool) { s.client.undo(s, r, ran) })
	if n != nil && n.statement != nil && len(p) == size && s.client != nil {
		s.loop.out.add(renameError(p, n))
		return false
	}
	return true
}

// stale takes note of a prepared statement that PostgreSQL will no longer run
// because its tables have changed. Prepared again it works.
func (s *server) stale(e *wireError, n *named) {
	if e == nil || n == nil || n.statement == nil {
		return
	}
	if _, has := s.served.used[n.statement]; !has {
		return
	}
	switch {
	case e.code == "26000":
		s.unserve(n.statement)
	case e.code == "0A000" && strings.Contains(e.message, "cached plan"):
		delete(s.served.used, n.statement)
		s.outdated = append(s.outdated, n.statement)
	}
}

// unserve forgets that the server has a statement.
func (s *server) unserve(st *statement) {
	if _, ok := s.served.used[st]; ok {
		delete(s.served.used, st)
		s.b.statements.release(st)
	}
}

// tag looks for commands that drop all prepared statements.
func (s *server) tag(body []byte) {
	if len(body) == 0 || body[0] != 'D' {
		return
	}
	switch tag := string(text(body)); tag {
	case "DEALLOCATE ALL", "DISCARD ALL":
		s.forgetAll()
		if c := s.client; c != nil {
			for name := range c.stmts {
				c.forget(name)
			}
			if tag == "DISCARD ALL" {
				c.unnamed = nil
			}
		}
	}
}

func (s *server) forgetAll() {
	for st := range s.served.used {
		s.b.statements.release(st)
	}
	for _, st := range s.outdated {
		s.b.statements.release(st)
	}
	s.served.used, s.outdated, s.unnamed = nil, nil, nil
}

// parameter handles a ParameterStatus.
func (s *server) parameter(body []byte) bool {
	name, rest, ok := cstring(body)
	if !ok {
		return true
	}
	value, _, _ := cstring(rest)
	s.params.set(s.b, string(name), string(value))
	if c := s.client; c != nil {
		c.params.set(s.b, string(name), string(value))
	}
	return true
}

func (s *server) choreMessage(p []byte, kind byte, size int) bool {
	switch kind {
	case 'E':
		if len(p) == size {
			e := parseError(p[headerSize:])
			s.chore.err = e
			if e.severity == "FATAL" || e.severity == "PANIC" {
				s.die("server said: " + e.message)
			}
		} else {
			s.chore.err = &wireError{severity: "ERROR", code: "XX000", message: "error"}
		}
	case 'S':
		if name, rest, ok := cstring(p[headerSize:]); ok {
			value, _, _ := cstring(rest)
			s.params.set(s.b, string(name), string(value))
		}
	case 'C':
		s.tag(p[headerSize:])
	case 'Z':
		s.status = p[headerSize]
		s.chore.over = true
	}
	return false
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
	s.queue.clear()
	s.pool.lose(s)
	if c != nil {
		c.server = nil
		if s.dead && strings.HasPrefix(reason, "server said") {
			// It was passed on; the connection ends as PostgreSQL's would have.
			c.end(nil)
			return
		}
		c.fail(fatal("08P01", "%s", reason))
	}
}
