package feedcache

import (
	"sync/atomic"
	"time"
)

// bounds are those of the histogram's buckets: each is twice the one before,
// from 1 ms to 2 h 20 min.
var bounds = func() (b [24]time.Duration) {
	for i := range b {
		b[i] = time.Millisecond << i
	}
	return b
}()

// A Histogram counts durations.
type Histogram struct {
	// Bounds are the upper bounds of the buckets, ascending. Counts, which are not
	// cumulative, has one more: what is above the last bound.
	Bounds []time.Duration
	Counts []int64

	// Sum is the sum of all durations.
	Sum time.Duration
}

// Count returns the number of durations.
func (h Histogram) Count() (n int64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Quantile returns the upper bound of the bucket that holds the q-th part of
// the durations, 0 < q <= 1: between the first bound and the last at most twice
// what it really is. It is 0 if there are none, and the last bound for what is
// above it.
func (h Histogram) Quantile(q float64) time.Duration {
	left := q * float64(h.Count())
	for i, c := range h.Counts {
		if left -= float64(c); c > 0 && left <= 0 {
			return h.Bounds[min(i, len(h.Bounds)-1)]
		}
	}
	return 0
}

type histogram struct {
	counts [len(bounds) + 1]atomic.Int64
	sum    atomic.Int64
}

// add counts d n times.
func (h *histogram) add(d time.Duration, n int) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	h.counts[i].Add(int64(n))
	h.sum.Add(int64(max(d, 0)) * int64(n))
}

func (h *histogram) snapshot() Histogram {
	s := Histogram{Bounds: append([]time.Duration(nil), bounds[:]...), Sum: time.Duration(h.sum.Load())}
	for i := range h.counts {
		s.Counts = append(s.Counts, h.counts[i].Load())
	}
	return s
}
