package pgbounce

import "time"

// numbers are Counters in the order of SHOW STATS, times in microseconds.
type numbers [12]int64

func (c Counters) numbers() numbers {
	return numbers{
		c.ServerAssignments, c.Transactions, c.Queries, c.Received, c.Sent,
		c.TransactionTime.Microseconds(), c.QueryTime.Microseconds(), c.WaitTime.Microseconds(),
		c.ClientParses, c.ServerParses, c.Binds, c.ClientLogins,
	}
}

// timesOf are the numbers that are times, and of how many of which each is the
// sum.
var timesOf = map[int]int{5: 1, 6: 2, 7: 0}

// average returns the counts per second and the times per count.
func average(now, before numbers, over time.Duration) (avg numbers) {
	for i := range avg {
		difference := now[i] - before[i]
		if of, ok := timesOf[i]; ok {
			if n := now[of] - before[of]; n > 0 {
				avg[i] = difference / n
			}
		} else if over > 0 {
			avg[i] = int64(float64(difference) / over.Seconds())
		}
	}
	return avg
}

// A sum is what the pools of a database, or of all, have counted.
type sum struct {
	database    string
	now, before Counters
	since, at   time.Duration // before and now
}

func (s *sum) add(p *pool, at time.Duration) {
	before := p.stats.before(at)
	s.now.add(p.stats.read())
	s.before.add(before.counters)
	s.since, s.at = max(s.since, before.at), at
}

func (s *sum) average() numbers {
	return average(s.now.numbers(), s.before.numbers(), s.at-s.since)
}

// sums returns those of the databases that have pools, and of all of them.
func (b *Bouncer) sums() (each []sum, all sum) {
	now := b.clock()
	for _, p := range b.allPools() {
		n := len(each) - 1
		if n < 0 || each[n].database != p.db.name {
			each = append(each, sum{database: p.db.name})
			n++
		}
		each[n].add(p, now)
		all.add(p, now)
	}
	return each, all
}

func (c *console) statsRow(name string, all ...numbers) {
	row := []any{name}
	for _, numbers := range all {
		for _, n := range numbers {
			row = append(row, n)
		}
	}
	c.row(row...)
}

func (c *console) showStats() {
	c.header("database total_server_assignment_count:n total_xact_count:n total_query_count:n total_received:n total_sent:n " +
		"total_xact_time:n total_query_time:n total_wait_time:n total_client_parse_count:n total_server_parse_count:n " +
		"total_bind_count:n total_client_login_count:n avg_server_assignment_count:n avg_xact_count:n avg_query_count:n avg_recv:n avg_sent:n " +
		"avg_xact_time:n avg_query_time:n avg_wait_time:n avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n avg_client_login_count:n")
	each, _ := c.b.sums()
	for _, s := range each {
		c.statsRow(s.database, s.now.numbers(), s.average())
	}
}

func (c *console) showTotalsOfDatabases() {
	c.header("database server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n xact_time:n query_time:n " +
		"wait_time:n client_parse_count:n server_parse_count:n bind_count:n client_login_count:n")
	each, _ := c.b.sums()
	for _, s := range each {
		c.statsRow(s.database, s.now.numbers())
	}
}

func (c *console) showAverages() {
	c.header("database server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n xact_time:n query_time:n " +
		"wait_time:n avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n client_login_count:n")
	each, _ := c.b.sums()
	for _, s := range each {
		c.statsRow(s.database, s.average())
	}
}

// totalNames are not those of the columns of SHOW STATS, in PgBouncer either.
var totalNames = [12]string{
	"server_assignment_count", "xact_count", "query_count", "client_bytes", "server_bytes", "xact_time", "query_time", "wait_time",
	"ps_client_parse_count", "ps_server_parse_count", "ps_bind_count", "client_login_count",
}

func (c *console) showTotals() {
	_, all := c.b.sums()
	c.header("name value:n")
	for i, n := range all.now.numbers() {
		c.row("total_"+totalNames[i], n)
	}
	for i, n := range all.average() {
		c.row("avg_"+totalNames[i], n)
	}
}
