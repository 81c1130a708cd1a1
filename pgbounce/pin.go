package pgbounce

// pinned tells whether SQL has an effect that outlives its transaction, as far
// as its text tells: it listens, locks for the session, makes a temporary
// table, or a cursor WITH HOLD.
func pinned(sql []byte) bool {
	for i, c := range sql {
		switch c | 0x20 {
		case 'l':
			if word(sql, i, "listen") {
				return true
			}
		case 'p':
			if prefix(sql[i:], "pg_advisory_lock") || prefix(sql[i:], "pg_try_advisory_lock") {
				return true
			}
		case 't':
			if word(sql, i, "temp") || word(sql, i, "temporary") {
				return true
			}
		case 'h':
			if word(sql, i, "hold") {
				return true
			}
		}
	}
	return false
}

func prefix(s []byte, lower string) bool {
	if len(s) < len(lower) {
		return false
	}
	for i := range len(lower) {
		if s[i]|0x20 != lower[i]|0x20 {
			return false
		}
	}
	return true
}

func word(s []byte, i int, lower string) bool {
	if !prefix(s[i:], lower) || i > 0 && isName(s[i-1]) {
		return false
	}
	end := i + len(lower)
	return end == len(s) || !isName(s[end])
}

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= 0x80
}

// refusal is what PostgreSQL runs in the place of SQL that is refused, so that
// its transaction fails as with any other error.
var refusal = &statement{body: refusalSQL + "\x00\x00\x00"}

const refusalSQL = `do $$begin raise exception using errcode = '0A000', message = 'this outlives its transaction, and the server does not: use session pooling'; end$$`

// pin does with the client what is configured for SQL that outlives its
// transaction, and tells whether it may pass.
func (c *client) pin() bool {
	switch c.b.config().Pins {
	case PinServer:
		c.pinned = true
	case PinRefuse:
		return false
	case PinWarn:
		if !c.warned {
			c.warned = true
			c.b.logClient(c, "uses what outlives a transaction: LISTEN, a session's advisory lock, a temporary table or a cursor WITH HOLD")
		}
	}
	return true
}

// inspect looks at a simple query before it is passed on, and tells whether it
// is to be.
func (c *client) inspect(sql []byte, size int) bool {
	s := c.server
	whole := len(sql) == size-headerSize
	if whole {
		if local := localCommandOf(text(sql)); local != nil {
			local.apply(c)
			s.queue.push(request{kind: 'Q', how: faked})
			s.settle()
			return false
		}
	}
	if !c.mapping || c.b.config().Pins == PinIgnore || !pinned(text(sql)) || c.pin() {
		return true
	}
	if !whole {
		c.failure = fatal("0A000", "this outlives its transaction, and the server does not: use session pooling")
		return false
	}
	s.queue.push(request{kind: 'Q'})
	c.loop.out.add(appendQuery(nil, refusalSQL))
	return false
}
