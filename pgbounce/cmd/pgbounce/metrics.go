//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/shardgram/shardgram/pgbounce"
)

// serveMetrics answers /metrics, in the text format of Prometheus, and /healthz
// until it is stopped. With so_reuseport the address is shared with the process
// that takes this one's place, and left to it once this one shuts down.
func (p *process) serveMetrics(ctx context.Context, f *pgbounce.File) (stop func(), err error) {
	if f.MetricsAddr == "" {
		return func() {}, nil
	}
	lc := listenConfig(f)
	l, err := lc.Listen(ctx, "tcp", f.MetricsAddr)
	if err != nil {
		return nil, fmt.Errorf("metrics_addr: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var page bytes.Buffer
		writeMetrics(&page, p.bouncer.Stats())
		metrics.WriteProcessMetrics(&page)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(page.Bytes())
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if p.stopping.Load() {
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 5 * time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); err != http.ErrServerClosed {
			p.log.Error("pgbounce: metrics are no longer served", "error", err)
		}
	}()
	p.log.Info("pgbounce: serving metrics", "addr", l.Addr().String())
	return func() {
		_ = server.Close()
		<-done
	}, nil
}

// A page is metrics in the making.
type page struct{ io.Writer }

// family begins those of a name.
func (p page) family(name, kind, help string) {
	fmt.Fprintf(p, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (p page) gauge(name, help string, value int) {
	p.family(name, "gauge", help)
	metrics.WriteGaugeUint64(p, name, uint64(max(value, 0)))
}

// writeMetrics writes a snapshot of what the Bouncer has and has done.
func writeMetrics(w io.Writer, s pgbounce.Stats) {
	p := page{w}
	p.gauge("pgbounce_clients", "Connections of clients, those that log in and those of the console included.", s.Clients)
	p.gauge("pgbounce_clients_limit", "How many clients are let in: max_client_conn.", s.MaxClients)
	p.gauge("pgbounce_clients_login", "Clients that log in.", s.Logins)
	p.gauge("pgbounce_console_clients", "Clients of the console.", s.Consoles)
	p.gauge("pgbounce_loops", "Threads that forward.", s.Loops)
	p.gauge("pgbounce_prepared_statements", "Prepared statements of all clients that differ.", s.PreparedStatements)
	p.gauge("pgbounce_paused", "1 while all databases are paused.", number(s.Paused))
	p.gauge("pgbounce_suspended", "1 while all activity is suspended.", number(s.Suspended))

	databases := func(name, help string, value func(*pgbounce.DatabaseStats) int) {
		p.family(name, "gauge", help)
		for i := range s.Databases {
			d := &s.Databases[i]
			metrics.WriteGaugeUint64(p, labelled(name, "database", d.Database), uint64(max(value(d), 0)))
		}
	}
	databases("pgbounce_database_paused", "1 while the database is paused.",
		func(d *pgbounce.DatabaseStats) int { return number(d.Paused) })
	databases("pgbounce_database_disabled", "1 while the database lets no clients in.",
		func(d *pgbounce.DatabaseStats) int { return number(d.Disabled) })
	databases("pgbounce_database_servers_limit", "How many servers the database may have, 0 for no limit: max_db_connections.",
		func(d *pgbounce.DatabaseStats) int { return d.MaxServers })
	databases("pgbounce_database_clients_limit", "How many clients the database may have, 0 for no limit: max_db_client_connections.",
		func(d *pgbounce.DatabaseStats) int { return d.MaxClients })

	pools := func(name, kind, help string, write func(name string, labels []string, pool *pgbounce.PoolStats)) {
		p.family(name, kind, help)
		for i := range s.Pools {
			pool := &s.Pools[i]
			write(name, []string{"database", pool.Database, "user", pool.User}, pool)
		}
	}
	gauge := func(name, help string, value func(*pgbounce.PoolStats) int) {
		pools(name, "gauge", help, func(name string, labels []string, pool *pgbounce.PoolStats) {
			metrics.WriteGaugeUint64(p, labelled(name, labels...), uint64(max(value(pool), 0)))
		})
	}
	counter := func(name, help string, value func(*pgbounce.PoolStats) int64) {
		pools(name, "counter", help, func(name string, labels []string, pool *pgbounce.PoolStats) {
			metrics.WriteCounterUint64(p, labelled(name, labels...), uint64(value(pool)))
		})
	}
	histogram := func(name, help string, value func(*pgbounce.PoolStats) *pgbounce.Histogram) {
		pools(name, "histogram", help, func(name string, labels []string, pool *pgbounce.PoolStats) {
			writeHistogram(p, name, labels, value(pool))
		})
	}
	pools("pgbounce_pool_clients", "gauge", "Clients of the pool: active ones are linked or have nothing to ask, waiting ones want a server.",
		func(name string, labels []string, pool *pgbounce.PoolStats) {
			for _, n := range []struct {
				state string
				value int
			}{{"active", pool.ClientsActive}, {"waiting", pool.ClientsWaiting}} {
				metrics.WriteGaugeUint64(p, labelled(name, append(labels, "state", n.state)...), uint64(max(n.value, 0)))
			}
		})
	pools("pgbounce_pool_servers", "gauge", "Servers of the pool: used ones were idle for so long that they are checked first.",
		func(name string, labels []string, pool *pgbounce.PoolStats) {
			for _, n := range []struct {
				state string
				value int
			}{
				{"active", pool.ServersActive},
				{"idle", pool.ServersIdle},
				{"used", pool.ServersUsed},
				{"login", pool.ServersLogin},
				{"being_canceled", pool.ServersBeingCanceled},
			} {
				metrics.WriteGaugeUint64(p, labelled(name, append(labels, "state", n.state)...), uint64(max(n.value, 0)))
			}
		})
	gauge("pgbounce_pool_servers_limit", "How many servers the pool may have: pool_size.",
		func(pool *pgbounce.PoolStats) int { return pool.PoolSize })
	gauge("pgbounce_pool_reserve_limit", "How many more it may have when clients have waited for long: reserve_pool_size.",
		func(pool *pgbounce.PoolStats) int { return pool.ReservePoolSize })
	gauge("pgbounce_pool_cancel_requests", "Cancel requests under way to PostgreSQL.",
		func(pool *pgbounce.PoolStats) int { return pool.CancelRequests })
	pools("pgbounce_pool_max_wait_seconds", "gauge", "How long the client that waits for longest has waited.",
		func(name string, labels []string, pool *pgbounce.PoolStats) {
			metrics.WriteGaugeFloat64(p, labelled(name, labels...), pool.MaxWait.Seconds())
		})

	counter("pgbounce_server_assignments_total", "How often a client got a server.",
		func(pool *pgbounce.PoolStats) int64 { return pool.ServerAssignments })
	counter("pgbounce_transactions_total", "Transactions.", func(pool *pgbounce.PoolStats) int64 { return pool.Transactions })
	counter("pgbounce_queries_total", "Queries.", func(pool *pgbounce.PoolStats) int64 { return pool.Queries })
	counter("pgbounce_received_bytes_total", "Bytes from clients.", func(pool *pgbounce.PoolStats) int64 { return pool.Received })
	counter("pgbounce_sent_bytes_total", "Bytes to clients.", func(pool *pgbounce.PoolStats) int64 { return pool.Sent })
	counter("pgbounce_client_parses_total", "Statements that clients have prepared.",
		func(pool *pgbounce.PoolStats) int64 { return pool.ClientParses })
	counter("pgbounce_server_parses_total", "Statements that were prepared on servers, each time counted.",
		func(pool *pgbounce.PoolStats) int64 { return pool.ServerParses })
	counter("pgbounce_binds_total", "Executions of prepared statements.", func(pool *pgbounce.PoolStats) int64 { return pool.Binds })
	counter("pgbounce_client_logins_total", "Clients that have logged in.",
		func(pool *pgbounce.PoolStats) int64 { return pool.ClientLogins })
	histogram("pgbounce_wait_seconds", "How long clients waited for servers.",
		func(pool *pgbounce.PoolStats) *pgbounce.Histogram { return &pool.WaitTimes })
	histogram("pgbounce_query_seconds", "How long queries took, to the end of their answer.",
		func(pool *pgbounce.PoolStats) *pgbounce.Histogram { return &pool.QueryTimes })
	histogram("pgbounce_transaction_seconds", "How long transactions took.",
		func(pool *pgbounce.PoolStats) *pgbounce.Histogram { return &pool.TransactionTimes })
}

// firstBucket and lastBucket have bounds of 32 µs and 134 s. What lies below
// and above is not told apart: each bucket is a time series for each pool.
const firstBucket, lastBucket = 5, 27

func writeHistogram(w io.Writer, name string, labels []string, h *pgbounce.Histogram) {
	var n int64
	for i, count := range h.Counts {
		n += count
		if i >= firstBucket && i <= lastBucket {
			le := strconv.FormatFloat(h.Bound(i).Seconds(), 'g', -1, 64)
			metrics.WriteCounterUint64(w, labelled(name+"_bucket", append(labels, "le", le)...), uint64(n))
		}
	}
	metrics.WriteCounterUint64(w, labelled(name+"_bucket", append(labels, "le", "+Inf")...), uint64(n))
	metrics.WriteCounterFloat64(w, labelled(name+"_sum", labels...), h.Sum.Seconds())
	metrics.WriteCounterUint64(w, labelled(name+"_count", labels...), uint64(n))
}

var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// labelled returns a metric's name with its labels, names and values in turn.
func labelled(name string, labels ...string) string {
	var b strings.Builder
	b.WriteString(name)
	sign := "{"
	for pair := range slices.Chunk(labels, 2) {
		b.WriteString(sign + pair[0] + `="`)
		_, _ = escapeLabel.WriteString(&b, strings.ToValidUTF8(pair[1], "\uFFFD"))
		b.WriteByte('"')
		sign = ","
	}
	b.WriteByte('}')
	return b.String()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// statsLine is PgBouncer's: what there was a second, and how long it took on
// average, between two snapshots.
func statsLine(before, now pgbounce.Stats, over time.Duration) string {
	was, is := total(before), total(now)
	each := func(was, is int64) int64 { return max(int64(float64(is-was)/max(over.Seconds(), 1e-3)), 0) }
	mean := func(was, is time.Duration, n int64) int64 {
		if n <= 0 {
			return 0
		}
		return max((is-was).Microseconds()/n, 0)
	}
	return fmt.Sprintf("stats: %d xacts/s, %d queries/s, %d client parses/s, %d server parses/s, %d binds/s, in %d B/s, out %d B/s, "+
		"xact %d us, query %d us, wait %d us",
		each(was.Transactions, is.Transactions), each(was.Queries, is.Queries),
		each(was.ClientParses, is.ClientParses), each(was.ServerParses, is.ServerParses), each(was.Binds, is.Binds),
		each(was.Received, is.Received), each(was.Sent, is.Sent),
		mean(was.TransactionTime, is.TransactionTime, is.Transactions-was.Transactions),
		mean(was.QueryTime, is.QueryTime, is.Queries-was.Queries),
		mean(was.WaitTime, is.WaitTime, is.ServerAssignments-was.ServerAssignments))
}

// total is what all databases have counted.
func total(s pgbounce.Stats) (all pgbounce.Counters) {
	for _, d := range s.Databases {
		c := d.Counters
		all.ServerAssignments += c.ServerAssignments
		all.Transactions += c.Transactions
		all.Queries += c.Queries
		all.Received += c.Received
		all.Sent += c.Sent
		all.TransactionTime += c.TransactionTime
		all.QueryTime += c.QueryTime
		all.WaitTime += c.WaitTime
		all.ClientParses += c.ClientParses
		all.ServerParses += c.ServerParses
		all.Binds += c.Binds
	}
	return all
}
