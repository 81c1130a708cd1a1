package pgbounce

import "time"

// ParseCommand returns the parts of a command of the console, and false if it
// is none.
func ParseCommand(sql string) (verb, arg, key, value string, ok bool) {
	c, err := parseCommand(sql)
	return c.verb, c.arg, c.key, c.value, err == nil
}

// Averages returns those of a pool that has counted so much at each of some
// times, at the last of them.
func Averages(at []time.Duration, counters []Counters) [12]int64 {
	p := &pool{db: &database{}}
	var s sum
	for i, now := range at {
		c := counters[i]
		p.stats.assigned.Store(c.ServerAssignments)
		p.stats.queries.Store(c.Queries)
		p.stats.transactions.Store(c.Transactions)
		p.stats.received.Store(c.Received)
		p.stats.queryTime.Store(int64(c.QueryTime))
		p.stats.waitTime.Store(int64(c.WaitTime))
		p.stats.tick(now)
		s = sum{}
		s.add(p, now)
	}
	return s.average()
}
