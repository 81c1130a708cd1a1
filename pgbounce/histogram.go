package pgbounce

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets is how many buckets a Histogram has.
const Buckets = 32

// A Histogram counts durations by powers of two: Counts[i] are those below
// 2^i microseconds that are not below 2^(i-1), the last one all others.
type Histogram struct {
	Counts [Buckets]int64
	Sum    time.Duration
}

// Bound returns the upper end of a bucket.
func (Histogram) Bound(i int) time.Duration { return time.Microsecond << i }

type histogram struct {
	counts [Buckets]atomic.Int64
}

func (h *histogram) add(d time.Duration) {
	h.counts[min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), Buckets-1)].Add(1)
}

func (h *histogram) read(sum int64) (r Histogram) {
	for i := range h.counts {
		r.Counts[i] = h.counts[i].Load()
	}
	r.Sum = time.Duration(sum)
	return r
}
