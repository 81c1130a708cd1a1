package pgbounce

import "strings"

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
			if s.passing && s.client != nil {
				out.add(p[:n])
			}
			s.rest -= n
			p = p[n:]
			if s.rest == 0 {
				s.settleInto(out)
			}
			continue
		}
		if len(p) < headerSize {
			return p
		}
		size := messageSize(p)
		if size <= 4 || size > maxMessage || p[0] == 'Z' && size != headerSize+1 {
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
		s.passing = s.message(p[:n], p[0], size) && s.client != nil
		if s.passing {
			out.add(p[:n])
		}
		if s.rest = size - n; s.rest == 0 {
			s.settleInto(out) // what is ours to answer comes right behind it
		}
		p = p[n:]
		if s.shut || s.dead {
			return nil
		}
	}
	return nil
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
	return visible
}

// settle answers requests that are ours to answer, when nothing is under way
// before them.
func (s *server) settle() {
	if r := s.queue.first(); r == nil || r.how != faked || s.client != nil && s.client.inside {
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
		if s.draining && q.n > 0 {
			s.cancel(func() {}) // the next one of several
		}
		return false
	}
	if c.pool.mode == Statement && status != 'I' {
		s.loop.out.add(appendError(nil, 'E', "FATAL", "08P01", "transaction blocks not allowed in statement pooling mode"))
		c.leaving = true
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
