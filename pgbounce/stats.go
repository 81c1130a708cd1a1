package pgbounce

import (
	"sync/atomic"
	"time"
)

// stats are the counters of a pool.
type stats struct {
	assigned, transactions, queries       atomic.Int64
	received, sent, fromServer            atomic.Int64
	xactTime, queryTime, waitTime         atomic.Int64 // nanoseconds
	clientParses, serverParses, binds     atomic.Int64
	waits, runs, xacts                    histogram
	logins, cancelsServed, lostRecoveries atomic.Int64
}

func (s *stats) waited(d time.Duration) {
	s.assigned.Add(1)
	s.waitTime.Add(int64(d))
	s.waits.add(d)
}

func (s *stats) ran(d time.Duration) {
	s.queries.Add(1)
	s.queryTime.Add(int64(d))
	s.runs.add(d)
}

func (s *stats) transacted(d time.Duration) {
	s.transactions.Add(1)
	s.xactTime.Add(int64(d))
	s.xacts.add(d)
}

func (s *stats) tick(time.Duration) {}
