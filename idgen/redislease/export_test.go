package redislease

import (
	"time"

	"github.com/shardgram/shardgram/idgen"
)

// SetTTL makes a store's TTL shorter than New allows, so that it ends in a test.
func (s *Store) SetTTL(d time.Duration) { s.cfg.TTL = d }

// Clone returns a lease that knows what l knows, as in a copy of a virtual
// machine.
func Clone(l idgen.Lease) idgen.Lease {
	c := *l.(*lease)
	return &c
}
