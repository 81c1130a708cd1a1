package pgbounce

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"sync"
)

// A cancelKey is what a client, or a server, is known by in cancel requests.
type cancelKey struct {
	pid    uint32
	secret string
}

// cancels finds clients by their keys.
type cancels struct {
	mu   sync.Mutex
	keys map[uint32]*client
}

// add gives a client a key that no other has. With peers, the secret begins
// with this process's number.
func (k *cancels) add(c *client, peer int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = map[uint32]*client{}
	}
	var b [8]byte
	for {
		_, _ = rand.Read(b[:])
		pid := binary.BigEndian.Uint32(b[:]) &^ (1 << 31)
		if _, taken := k.keys[pid]; taken || pid == 0 {
			continue
		}
		if peer != 0 {
			binary.BigEndian.PutUint16(b[4:], uint16(peer))
		}
		c.key = cancelKey{pid: pid, secret: string(b[4:])}
		k.keys[pid] = c
		return
	}
}

func (k *cancels) remove(c *client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys[c.key.pid] == c {
		delete(k.keys, c.key.pid)
	}
}

func (k *cancels) find(key cancelKey) *client {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.keys[key.pid]
	if c == nil || subtle.ConstantTimeCompare([]byte(c.key.secret), []byte(key.secret)) != 1 {
		return nil
	}
	return c
}

var errCanceled = &wireError{severity: "ERROR", code: "57014", message: "canceling statement due to user request"}

// cancel does what a cancel request asks for, and calls done when it is done:
// a client that waits for a server no longer waits, and what a server runs for
// it is cancelled. A client that does nothing is left alone.
func (c *client) cancel(done func()) {
	switch s := c.server; {
	case c.shut:
		done()
	case c.waiter.waiting:
		if !c.waiter.pool.leave(c) {
			c.canceled = true // a server is on its way: it is not used
			done()
			return
		}
		c.waiter.waiting = false
		c.refuse(errCanceled)
		done()
	case s != nil && (s.queue.n > 0 || s.copyIn):
		s.cancel(done)
	default:
		done()
	}
}

// refuse answers all that is held, up to and including a Query or Sync, with an
// error.
func (c *client) refuse(err *wireError) {
	p := c.held
	answered := false
	for len(p) >= headerSize {
		size := messageSize(p)
		kind := p[0]
		if size > len(p) {
			c.rest, c.drop = size-len(p), true
			p = nil
		} else {
			p = p[size:]
		}
		if kind == 'Q' || kind == 'S' || kind == 'F' {
			answered = true
			break
		}
	}
	c.hold(p)
	c.answer(appendError(nil, 'E', err.severity, err.code, err.message))
	c.skipping = !answered
	if answered {
		c.answer(readyIdle)
	}
	if c.readable || len(c.held) > 0 {
		c.loop.later(c.resume)
	}
}
