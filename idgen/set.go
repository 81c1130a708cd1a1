package idgen

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// A Set joins the generators of the shards that one process owns, so that k
// shards make k × 1,024 IDs per millisecond. It is safe for concurrent use.
type Set struct {
	generators []*Generator // by shard
	current    atomic.Int64 // index of the one that had room last
}

// NewSet returns a set of generators of different shards and of one layout. The
// set does not close them.
func NewSet(generators ...*Generator) (*Set, error) {
	if len(generators) == 0 {
		return nil, errors.New("idgen: a set of no generators")
	}
	if slices.Contains(generators, nil) {
		return nil, errors.New("idgen: a set with a nil generator")
	}
	s := &Set{generators: slices.Clone(generators)}
	slices.SortFunc(s.generators, func(a, b *Generator) int { return a.Shard() - b.Shard() })
	for i, g := range s.generators {
		if g.layout != s.generators[0].layout {
			return nil, fmt.Errorf("idgen: a set of layouts %v and %v: want one", s.generators[0].layout, g.layout)
		}
		if i > 0 && g.shard == s.generators[i-1].shard {
			return nil, fmt.Errorf("idgen: a set with shard %d twice", g.shard)
		}
	}
	return s, nil
}

// Shard returns the generator of a shard.
func (s *Set) Shard(shard int) (*Generator, bool) {
	i, ok := slices.BinarySearchFunc(s.generators, shard, func(g *Generator, n int) int { return g.Shard() - n })
	if !ok {
		return nil, false
	}
	return s.generators[i], true
}

// Next returns an ID of a shard that has one now, the one that had one last if
// it can. Only when all are used up it waits, as [Generator.Next] does. The IDs of
// one shard increase; those of the set may step back, by a millisecond or as much
// as one of its generators is ahead of the clock.
//
// A generator that has failed is passed over while another one works.
func (s *Set) Next(ctx context.Context) (ID, error) {
	for {
		id, full, err := s.tryNext()
		if full == nil {
			return id, err
		}
		if full.refuse {
			return 0, ErrFull
		}
		// Not full.Next, which would wait for its store though others have
		// room a millisecond later.
		if err := full.sleep(ctx, full.clock()+1); err != nil {
			return 0, err
		}
	}
}

// tryNext returns an ID, or one of the generators that will have one, or why
// none will.
func (s *Set) tryNext() (ID, *Generator, error) {
	at := s.current.Load()
	var full *Generator
	var failed error
	for i := range int64(len(s.generators)) {
		n := (at + i) % int64(len(s.generators))
		id, err := s.generators[n].TryNext()
		switch {
		case err == nil:
			if i > 0 {
				s.current.Store(n)
			}
			return id, nil, nil
		case !errors.Is(err, ErrFull):
			failed = err
		case full == nil:
			full = s.generators[n]
		}
	}
	if full != nil {
		failed = nil
	}
	return 0, full, failed
}
