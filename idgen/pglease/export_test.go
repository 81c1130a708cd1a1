package pglease

import "github.com/shardgram/shardgram/idgen"

// Clone returns a holder that knows what another one knows.
func Clone(l idgen.Lease) idgen.Lease {
	c := *l.(*lease)
	return &c
}
