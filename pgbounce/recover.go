package pgbounce

import (
	"context"
	"encoding/binary"
	"net"
)

// abandon is called when a server's client is gone. What was under way is
// cancelled, drained and rolled back, which is cheaper than a new connection;
// in doubt the server is closed.
func (s *server) abandon() {
	c := s.client
	s.client, c.server = nil, nil
	q := &s.queue
	for i := q.n - 1; i >= 0; i-- {
		// The client's names are gone; only what servers have still counts.
		q.at(i).name = dropName(s, q.at(i))
	}
	switch {
	case c.rest > 0 && !c.drop:
		s.end("client disconnected inside a message")
		return
	case s.b.config().RecoverTimeout == 0 && (q.n > 0 || s.copyIn || s.status != 'I'):
		s.end("client disconnected while query was active")
		return
	}
	s.draining = true
	s.drainSince = s.loop.now
	var out []byte
	busy := q.n > 0
	if s.copyIn {
		out = appendCopyFail(out)
		s.copyIn = false
	}
	if s.chore == nil && s.needsSync() {
		if s.unsynced && !q.failed {
			// A Sync would commit what the client has not committed. This fails,
			// and the batch with it.
			out = appendExecute(out, "?gone")
			q.push(request{kind: 'E', how: injected})
		}
		out = appendHeader(out, 'S', 0)
		q.push(request{kind: 'S'})
		q.failed, s.unsynced = false, false
	}
	if len(out) > 0 {
		if err := s.write(out); err != nil {
			s.lost(err)
			return
		}
	}
	if busy {
		s.cancel(func() {})
	}
	if s.readable {
		s.later() // it was held up by a slow client
	}
	s.maybeRecover()
}

// dropName releases what a Close of a client that is gone held.
func dropName(s *server, r *request) *named {
	if r.kind == 'C' && r.how == faked && r.name != nil {
		s.b.statements.release(r.name.statement)
		r.name = nil
	}
	return r.name
}

// needsSync tells whether the server will not say Z by itself.
func (s *server) needsSync() bool {
	q := &s.queue
	if q.failed || s.unsynced {
		return true
	}
	if q.n == 0 {
		return false
	}
	last := q.at(q.n - 1).kind
	return last != 'Q' && last != 'S' && last != 'F'
}

func appendCopyFail(p []byte) []byte {
	const why = "client disconnected"
	return append(append(appendHeader(p, 'f', len(why)+1), why...), 0)
}

// failCopy ends a copy that began after its client was gone.
func (s *server) failCopy(r *request) {
	s.copyIn = false
	out := appendCopyFail(nil)
	if r != nil && r.kind == 'E' && s.needsSync() {
		out = appendHeader(out, 'S', 0)
		s.queue.push(request{kind: 'S'})
	}
	if err := s.write(out); err != nil {
		s.die("server connection lost")
	}
}

// maybeRecover goes on if nothing is left to drain.
func (s *server) maybeRecover() {
	if s.chore == nil && s.queue.n == 0 && !s.queue.failed && !s.copyIn && s.rest == 0 && len(s.held) == 0 && !s.pending() && !s.shut {
		s.recovered()
	}
}

// recovered is called when the server is ready again.
func (s *server) recovered() {
	if s.pool.awaitsCancel(s) {
		return
	}
	if s.status != 'I' {
		s.run("rollback", func(err *wireError) {
			if err != nil || s.status != 'I' {
				s.end("cannot roll back")
				return
			}
			s.recovered()
		})
		return
	}
	s.draining = false
	s.give()
}

// cancel asks PostgreSQL to cancel what the server runs. The server is not
// given to anybody else before that request is done, as it would meet the
// wrong query.
func (s *server) cancel(done func()) {
	s.pool.mu.Lock()
	s.canceling++
	s.pool.mu.Unlock()
	spawned := s.b.spawn(func() {
		ctx, stop := context.WithTimeout(s.b.life, s.b.config().CancelWaitTimeout)
		err := sendCancel(ctx, s)
		stop()
		if err != nil {
			s.b.log().Warn("pgbounce: cancel request failed", "server", s.target)
		}
		done()
		s.pool.canceled(s)
	})
	if !spawned {
		done()
	}
}

// sendCancel returns when PostgreSQL has closed the connection, which is after
// it has sent the signal.
func sendCancel(ctx context.Context, s *server) error {
	conn, err := s.pool.dialCancel(ctx, s)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return writeCancel(conn, s.key)
}

// writeCancel sends a cancel request and waits for the other end to close.
func writeCancel(conn net.Conn, key cancelKey) error {
	p := binary.BigEndian.AppendUint32(nil, uint32(12+len(key.secret)))
	p = binary.BigEndian.AppendUint32(p, cancelCode)
	p = binary.BigEndian.AppendUint32(p, key.pid)
	if _, err := conn.Write(append(p, key.secret...)); err != nil {
		return err
	}
	var b [1]byte
	_, _ = conn.Read(b[:])
	return nil
}
