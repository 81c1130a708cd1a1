package feedcache

import (
	"context"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// A replica that takes over, and a server that starts from an old snapshot,
// have feeds without their last pushes, and nobody can see it on the feed. So a
// feed says in its header which incarnation of a server it was filled on, and
// is believed only while that one is still there.

// incarnations remembers which incarnation is at each address, and since when
// that is known.
type incarnations struct {
	mu sync.Mutex
	at map[string]sighting
}

type sighting struct {
	server string
	when   time.Time
}

// fresh returns the incarnation at addr, if it was seen less than age ago.
func (s *incarnations) fresh(addr string, age time.Duration) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok := s.at[addr]
	return seen.server, ok && time.Since(seen.when) < age
}

// saw notes what was asked for at the time when.
func (s *incarnations) saw(addr, server string, when time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = make(map[string]sighting)
	}
	s.at[addr] = sighting{server, when}
}

// addr tells nodes apart: it is the address of the one that the client takes to
// have the key. A client of one server, also by way of Sentinel, has one node.
func (f *Feeds) addr(ctx context.Context, key string) string {
	if c, ok := f.rdb.(*redis.ClusterClient); ok {
		if node, err := c.MasterForKey(ctx, key); err == nil {
			return node.Options().Addr
		}
	}
	return ""
}
