package pgbounce

import (
	"bytes"
	"slices"
)

// checkFrontend refuses what PostgreSQL would close the connection for, which
// is a server of ours.
func checkFrontend(kind byte, size int) *wireError {
	switch kind {
	case 'Q', 'P', 'B', 'F', 'd', 'f':
		if size <= 4 || size > maxMessage {
			return fatal("08P01", "invalid message length")
		}
	case 'C', 'D', 'E', 'H', 'S', 'X', 'c':
		if size <= 4 || size > maxSmall {
			return fatal("08P01", "invalid message length")
		}
	default:
		return fatal("08P01", "invalid frontend message type %d", kind)
	}
	return nil
}

// alone handles a message that needs no server. It returns how much of p it
// took; done is false for messages that need one, with n < 0 if more of them
// has to come first.
func (c *client) alone(p []byte, size int) (n int, done bool) {
	if c.skipping && p[0] != 'X' {
		c.rest, c.drop = size-min(size, len(p)), true
		if p[0] == 'S' {
			c.skipping = false
			c.answer(readyIdle)
		}
		return min(size, len(p)), true
	}
	switch p[0] {
	case 'X':
		c.leaving = true
		return 0, true
	case 'S':
		c.answer(readyIdle)
	case 'H':
	case 'd', 'c', 'f': // the rest of a copy that has failed
		c.rest, c.drop = size-min(size, len(p)), true
		return min(size, len(p)), true
	case 'C':
		if len(p) < size {
			return -1, false
		}
		if !c.mapping || size < headerSize+2 || p[headerSize] != 'S' {
			return 0, false
		}
		name, _, ok := cstring(p[headerSize+1 : size])
		if !ok {
			return 0, false
		}
		c.forget(string(name))
		c.answer(closeComplete)
	case 'P':
		if len(p) < min(size, maxStatement) {
			return -1, false
		}
		return 0, false
	case 'Q':
		if len(p) < min(size, heldSize/2) {
			return -1, false
		}
		local := localCommandOf(text(p[headerSize:min(size, len(p))]))
		if local == nil {
			return 0, false
		}
		local.apply(c)
		c.answer(append(append([]byte(nil), setTag...), readyIdle...))
	default:
		if len(p) < min(size, heldSize/2) {
			return -1, false
		}
		return 0, false
	}
	if len(p) < size {
		c.rest, c.drop = size-len(p), true
		return len(p), true
	}
	return size, true
}

// forget drops a prepared statement.
func (c *client) forget(name string) {
	if name == "" {
		c.unnamed = nil
	} else if n := c.stmts[name]; n != nil {
		delete(c.stmts, name)
		c.b.statements.release(n.statement)
	}
}

// message handles the message that begins p, for which there is a server, and
// returns how much of p it took: 0 if more of it has to come first.
func (c *client) message(p []byte, size int) int {
	s, out := c.server, &c.loop.out
	q := &s.queue
	switch p[0] {
	case 'P', 'B', 'D', 'C', 'E':
		s.unsynced = true // until a Sync, even if all of it is answered
	}
	switch p[0] {
	case 'X':
		c.leaving = true
		return -1
	case 'Q':
		if look := min(size, heldSize/2); len(p) < look {
			return 0
		}
		if !c.inspect(p[headerSize:min(size, len(p))], size) {
			return size
		}
		if !q.failed {
			q.push(request{kind: 'Q'})
			c.unnamed, s.unnamed, s.unsynced = nil, nil, false
			s.started()
		}
	case 'F':
		if !q.failed {
			q.push(request{kind: 'F'})
			s.started()
		}
	case 'S':
		if !s.copyIn {
			q.push(request{kind: 'S'})
		}
		q.failed, s.unsynced = false, false
	case 'E':
		if !q.failed {
			q.push(request{kind: 'E'})
			s.started()
		}
	case 'c', 'f':
		if s.copyIn {
			s.copyIn = false
		} else if !q.failed && q.n > 0 {
			q.push(request{kind: 'c'})
		}
	case 'P':
		if c.mapping {
			return c.parse(p, size)
		}
		if !q.failed {
			q.push(request{kind: 'P'})
		}
	case 'B', 'D', 'C':
		if c.mapping {
			return c.useStatement(p, size)
		}
		if !q.failed {
			q.push(request{kind: p[0]})
		}
	}
	n := min(size, len(p))
	out.add(p[:n])
	c.rest, c.drop = size-n, false
	return n
}

// parse handles a Parse.
func (c *client) parse(p []byte, size int) int {
	s, out := c.server, &c.loop.out
	q := &s.queue
	if size > maxStatement {
		if len(p) < headerSize+1 {
			return 0
		}
		if p[headerSize] != 0 {
			c.failure = fatal("54000", "a named prepared statement may have %d bytes, this one has %d", maxStatement, size)
			return -1
		}
		if !q.failed {
			q.push(request{kind: 'P', statement: c.unnamed})
			c.unnamed, s.unnamed, s.longOf = tooLong, tooLong, c.id
		}
		out.add(p)
		c.rest, c.drop = size-len(p), false
		return len(p)
	}
	if len(p) < size || c.inDoubt() {
		return 0
	}
	c.parses++
	c.pool.stats.clientParses.Add(1)
	name, body, ok := cstring(p[headerSize:size])
	if !ok || q.failed {
		// The server answers it with an error, or not at all.
		if !q.failed {
			q.push(request{kind: 'P'})
		}
		out.add(p[:size])
		return size
	}
	whole := p[:size]
	if local := localCommandOf(text(body)); local != nil {
		body = []byte(local.statement())
		whole = appendParse(nil, string(name), string(body))
	}
	if len(name) == 0 {
		st := c.unnamed
		if st == nil || st.body != string(body) {
			if st = s.unnamed; st == nil || st.body != string(body) {
				st = newStatement(body)
			}
		}
		if st.pins && !c.pin() {
			st = refusal
			whole = appendParse(nil, "", st.body)
		}
		q.push(request{kind: 'P', statement: c.unnamed})
		c.unnamed, s.unnamed = st, st
		c.pool.stats.serverParses.Add(1)
		out.add(whole)
		return size
	}
	if n := c.stmts[string(name)]; n != nil {
		c.prepare(n)
		q.push(request{kind: 'P', how: taken, name: n})
		out.add(appendParse(nil, n.statement.name, string(body)))
		return size
	}
	st := c.b.statements.intern(body)
	if st.pins && !c.pin() {
		c.b.statements.release(st)
		st = c.b.statements.intern([]byte(refusal.body))
	}
	n := &named{name: string(name), statement: st}
	if c.stmts == nil {
		c.stmts = map[string]*named{}
	}
	c.stmts[n.name] = n
	if s.served.use(st) {
		if s.status == 'E' || q.readies > 0 {
			// In a failed transaction it would be refused.
			q.push(request{kind: 'P', how: probed, name: n, statement: st})
			s.unnamed = nil
			out.add(appendParse(nil, "", st.body))
			return size
		}
		q.push(request{kind: 'P', how: faked, name: n, statement: st})
		s.settle()
		return size
	}
	c.makeRoom()
	c.addServed(st)
	q.push(request{kind: 'P', name: n, statement: st})
	out.add(appendParse(nil, st.name, st.body))
	return size
}

// tooLong stands for an unnamed statement that is not kept.
var tooLong = &statement{}

// prepare sees that the server has a statement.
func (c *client) prepare(n *named) {
	s := c.server
	if s.served.use(n.statement) {
		return
	}
	c.makeRoom()
	c.addServed(n.statement)
	s.queue.push(request{kind: 'P', how: injected, name: n, statement: n.statement})
	c.loop.out.add(appendParse(nil, n.statement.name, n.statement.body))
}

func (c *client) addServed(st *statement) {
	if s := c.server; len(s.outdated) > 0 {
		if i := slices.Index(s.outdated, st); i >= 0 {
			s.outdated = slices.Delete(s.outdated, i, i+1)
			s.queue.push(request{kind: 'C', how: injected, statement: st})
			c.loop.out.add(appendCloseStatement(nil, st.name))
		}
	}
	c.server.served.add(st)
	c.b.statements.hold(st)
	c.pool.stats.serverParses.Add(1)
}

// makeRoom closes the statement used longest ago if the server has too many.
func (c *client) makeRoom() {
	s := c.server
	if st := s.served.surplus(c.b.config().MaxPreparedStatements); st != nil {
		delete(s.served.used, st)
		s.queue.push(request{kind: 'C', how: injected, statement: st})
		c.loop.out.add(appendCloseStatement(nil, st.name))
	}
}

// useStatement handles a Bind, Describe or Close.
func (c *client) useStatement(p []byte, size int) int {
	s, out := c.server, &c.loop.out
	q := &s.queue
	kind := p[0]
	if len(p) < min(size, headerSize+maxNames) {
		// The names come first, and are most often short.
		if _, _, _, ok := names(kind, p[headerSize:]); !ok || kind != 'B' {
			return 0
		}
	}
	if c.inDoubt() {
		return 0
	}
	portal, name, rest, ok := names(kind, p[headerSize:min(size, len(p))])
	if !ok && size > headerSize+maxNames {
		c.failure = fatal("08P01", "a name is longer than %d bytes", maxNames)
		return -1
	}
	isStatement := kind == 'B' || len(portal) == 1 && portal[0] == 'S'
	switch {
	case q.failed || !ok:
		if !q.failed {
			q.push(request{kind: kind})
		}
	case !isStatement:
		q.push(request{kind: kind})
	case len(name) == 0:
		if kind == 'C' {
			c.unnamed, s.unnamed = nil, nil
		} else if s.unnamed == nil || c.unnamed == nil || s.unnamed != c.unnamed && s.unnamed.body != c.unnamed.body {
			c.bringUnnamed()
		}
		if kind == 'B' {
			c.bound(c.unnamed)
		}
		q.push(request{kind: kind})
	case kind == 'C':
		n := c.stmts[string(name)]
		delete(c.stmts, string(name))
		q.push(request{kind: 'C', how: faked, name: n})
		s.settle()
		return size
	default:
		n := c.stmts[string(name)]
		if n == nil {
			n = unknown(string(name))
		} else {
			c.prepare(n)
		}
		q.push(request{kind: kind, name: n})
		if kind == 'B' {
			c.bound(n.statement)
		}
		if n.statement == nil {
			break // PostgreSQL tells that it is unknown
		}
		// The message with another name; what follows the names may be long,
		// and not all here.
		body := size - headerSize + len(n.statement.name) - len(name)
		head := appendHeader(make([]byte, 0, headerSize+len(portal)+len(n.statement.name)+2), kind, body)
		head = append(head, portal...)
		if kind == 'B' {
			head = append(head, 0)
		}
		head = append(append(head, n.statement.name...), 0)
		out.add(head)
		out.add(rest)
		c.rest, c.drop = size-min(size, len(p)), false
		return min(size, len(p))
	}
	n := min(size, len(p))
	out.add(p[:n])
	c.rest, c.drop = size-n, false
	return n
}

func (c *client) bound(st *statement) {
	c.pool.stats.binds.Add(1)
	if st != nil && st.local != nil {
		st.local.apply(c)
	}
}

// inDoubt tells whether it depends on answers that have not come what a name
// stands for. The client waits for them.
func (c *client) inDoubt() bool {
	c.doubts = c.server.queue.unsure > 0
	return c.doubts
}

// names returns the two names at the begin of a Bind, or of a Describe or
// Close the kind of its object and the name.
func names(kind byte, body []byte) (first, name, rest []byte, ok bool) {
	if kind == 'B' {
		if first, rest, ok = cstring(body); !ok {
			return nil, nil, nil, false
		}
	} else {
		if len(body) == 0 {
			return nil, nil, nil, false
		}
		first, rest = body[:1], body[1:]
	}
	name, rest, ok = cstring(rest)
	return first, name, rest, ok
}

// unknown returns what stands for a name the client has not prepared. It must
// not meet a name of ours on the server.
func unknown(name string) *named {
	n := &named{name: name}
	if bytes.HasPrefix([]byte(name), []byte(servedPrefix)) {
		n.statement = &statement{name: "?" + name}
	}
	return n
}

// bringUnnamed makes the server's unnamed statement the client's, or makes
// sure that it has none if the client has none.
func (c *client) bringUnnamed() {
	s, out := c.server, &c.loop.out
	st := c.unnamed
	if st == tooLong {
		if s.unnamed == tooLong && s.longOf == c.id {
			return
		}
		st = nil
	}
	if st == nil {
		s.unnamed = nil
		s.queue.push(request{kind: 'C', how: injected})
		out.add(appendCloseStatement(nil, ""))
		return
	}
	s.unnamed = st
	s.queue.push(request{kind: 'P', how: injected, statement: st})
	c.pool.stats.serverParses.Add(1)
	out.add(appendParse(nil, "", st.body))
}

// undo takes back what a request that the server skipped, or that failed, has
// changed.
func (c *client) undo(s *server, r *request, ran bool) {
	switch {
	case r.kind == 'P' && r.name == nil && r.how == injected:
		s.unnamed = nil
	case r.kind == 'P' && r.name == nil:
		s.unnamed = nil
		if c != nil {
			c.unnamed = nil
			if !ran {
				c.unnamed = r.statement
			}
		}
	case r.kind == 'P' && r.how != taken:
		if r.how == forwarded || r.how == injected {
			s.unserve(r.statement)
		}
		if r.how != injected && c != nil && c.stmts[r.name.name] == r.name {
			delete(c.stmts, r.name.name)
			c.b.statements.release(r.statement)
		}
	case r.kind == 'C' && r.how == injected && r.statement != nil:
		s.served.add(r.statement)
	case r.kind == 'C' && r.how == faked && r.name != nil:
		if c == nil {
			s.b.statements.release(r.name.statement)
		} else if c.stmts[r.name.name] == nil {
			c.stmts[r.name.name] = r.name
		}
	}
}
