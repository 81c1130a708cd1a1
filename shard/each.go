package shard

import (
	"context"
	"sync"
)

// Progress is how far a call on many shards is with those of one node.
type Progress struct {
	Node                string
	Done, Failed, Total int // shards; Failed are also Done
}

// Each calls fn for every shard of a list, on all nodes at once and on a few
// shards of a node at a time ([Config].PerNode). A shard that fails does not stop
// the others: Each waits for all and returns what failed as [Errors]. When ctx
// ends, no further shard is begun.
func (c *Cluster) Each(ctx context.Context, shards []Shard, fn func(context.Context, Shard) error) error {
	return c.each(ctx, shards, nil, fn)
}

// each also tells of its progress, if anybody wants to know, in one call at a
// time.
func (c *Cluster) each(ctx context.Context, shards []Shard, tell func(Progress), fn func(context.Context, Shard) error) error {
	errs := make([]error, len(shards))
	queues := make(map[*node][]int) // places in shards
	for i, s := range shards {
		n := s.place().node
		if n == nil {
			errs[i] = s.wrap(place{}, ErrNoShard)
			continue
		}
		queues[n] = append(queues[n], i)
	}
	var workers sync.WaitGroup
	var telling sync.Mutex
	var panicked any
	for n, queue := range queues {
		var mu sync.Mutex
		next, at := 0, Progress{Node: n.Name, Total: len(queue)}
		for range min(c.cfg.PerNode, len(queue)) {
			workers.Go(func() {
				defer func() {
					if v := recover(); v != nil { // Each panics with it
						telling.Lock()
						panicked = v
						telling.Unlock()
					}
				}()
				for {
					mu.Lock()
					if next == len(queue) {
						mu.Unlock()
						return
					}
					i := queue[next]
					next++
					mu.Unlock()
					err := ctx.Err()
					if err == nil {
						err = fn(ctx, shards[i])
					}
					errs[i] = shards[i].wrap(shards[i].place(), err)
					if tell == nil {
						continue
					}
					telling.Lock()
					at.Done++
					if err != nil {
						at.Failed++
					}
					tell(at)
					telling.Unlock()
				}
			})
		}
	}
	workers.Wait()
	if panicked != nil {
		panic(panicked)
	}
	return join(errs)
}
