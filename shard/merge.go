package shard

import (
	"context"
	"errors"
	"iter"

	"github.com/jackc/pgx/v5"
)

// merge reads the first rows of every shard, and then passes them on in order.
func (q *Scatter[T]) merge(ctx context.Context, g *gather, yield func(T, error) bool) error {
	rows := make([][]T, len(g.shards))
	limit := q.first(len(g.shards))
	g.read = func(_ context.Context, i int, r pgx.Rows) error {
		list := make([]T, 0, min(limit, ahead))
		for r.Next() {
			row, err := q.Scan(r)
			if err != nil {
				return err
			}
			if n := len(list); n > 0 && q.Compare(list[n-1], row) > 0 {
				return errors.New("its rows are not in the order of Compare")
			}
			list = append(list, row)
		}
		rows[i] = list
		return nil
	}
	more := g.all()
	cut := make([]bool, len(rows)) // there may be rows behind those that were read
	for len(more) > 0 {
		g.sql = q.limited(limit)
		if err := g.run(ctx, more); err != nil && (!q.Partial || err == errPanicked) {
			return err
		}
		for _, i := range more {
			if g.errs[i] != nil {
				rows[i] = nil
			}
			cut[i] = limit < q.Limit && len(rows[i]) == limit
		}
		limit, more = q.Limit, q.short(rows, cut)
	}
	for _, row := range q.merged(rows) {
		if !yield(row, nil) {
			return errLeft
		}
	}
	return g.failed()
}

// first is how many rows each shard is asked for at first. Of many shards hardly
// any has more than a few of the first rows: with the newest 20 of 256, to ask each
// for 3 takes two thirds of the time that it takes to ask each for 20.
func (q *Scatter[T]) first(shards int) int {
	if shards < 4 {
		return q.Limit
	}
	return min(q.Limit, 3+3*(q.Limit/shards))
}

// short returns the shards that may have more of the first rows than were read,
// as all that were are among them.
func (q *Scatter[T]) short(rows [][]T, cut []bool) []int {
	taken := make([]int, len(rows))
	if q.Limit > 0 {
		for i := range q.merged(rows) {
			taken[i]++
		}
	}
	var list []int
	for i, n := range taken {
		if cut[i] && n == len(rows[i]) {
			list = append(list, i)
		}
	}
	return list
}

// merged yields the first rows of all lists in order, each with the number of
// its list. It keeps a heap of the lists that have rows left, the one with the
// next row on top.
func (q *Scatter[T]) merged(rows [][]T) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		var heap []int
		next := make([]int, len(rows))
		before := func(a, b int) bool {
			c := q.Compare(rows[a][next[a]], rows[b][next[b]])
			return c < 0 || c == 0 && a < b
		}
		down := func(at int) {
			for {
				child := 2*at + 1
				if child >= len(heap) {
					return
				}
				if child+1 < len(heap) && before(heap[child+1], heap[child]) {
					child++
				}
				if !before(heap[child], heap[at]) {
					return
				}
				heap[at], heap[child] = heap[child], heap[at]
				at = child
			}
		}
		for i, list := range rows {
			if len(list) > 0 {
				heap = append(heap, i)
			}
		}
		for at := len(heap)/2 - 1; at >= 0; at-- {
			down(at)
		}
		for n := 0; len(heap) > 0 && (q.Limit == 0 || n < q.Limit); n++ {
			i := heap[0]
			if !yield(i, rows[i][next[i]]) {
				return
			}
			if next[i]++; next[i] == len(rows[i]) {
				heap[0] = heap[len(heap)-1]
				heap = heap[:len(heap)-1]
			}
			down(0)
		}
	}
}
