package feedcache

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// A server that hangs costs each page all the timeouts and retries of the
// client, until the pages that wait are more than the program can hold. So
// once one has waited, the others leave that server alone for a while: they
// come from the Source, as its own would have.

// hung is how long a call waits at least that ended only with its context, for
// its server to be taken for one that hangs.
const hung = 250 * time.Millisecond

// errAway is the failure of a page that did not ask.
var errAway = errors.New("the server did not answer a moment ago")

// A breaker knows which servers did not answer lately.
type breaker struct {
	mu    sync.Mutex
	until map[string]time.Time // by address
}

// open reports whether pages are to leave the server alone. When the time is
// over, the first one to ask is let through, and the others only if it finds
// the server well.
func (b *breaker) open(addr string, pause time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.until[addr]
	if !ok {
		return false
	}
	now := time.Now()
	if now.Before(until) {
		return true
	}
	b.until[addr] = now.Add(pause)
	return false
}

// note takes in how a call ended that began at a time.
func (b *breaker) note(addr string, begin time.Time, err error, pause time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, reply := errors.AsType[redis.Error](err); err == nil || reply {
		delete(b.until, addr) // it answers
		return
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && time.Since(begin) < hung {
		return // the caller's doing
	}
	// A connection that was cut is no silence: the next one may do.
	timeout, dial := false, false
	if e, ok := errors.AsType[net.Error](err); ok {
		timeout = e.Timeout()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		dial = e.Op == "dial"
	}
	if !timeout && !dial {
		return
	}
	if b.until == nil {
		b.until = make(map[string]time.Time)
	}
	b.until[addr] = time.Now().Add(pause)
}
