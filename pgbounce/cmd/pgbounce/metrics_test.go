//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// Samples are the values of metrics by name and labels, as they were written.
type samples map[string]float64

var (
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"(?:, ?)?)*)\})? (\S+)$`)
	lePair     = regexp.MustCompile(`,?le="([^"]*)"`)
)

// parseMetrics reads the text format, and checks all that it asks for of
// metrics of ours.
func parseMetrics(t *testing.T, text string) samples {
	t.Helper()
	all := samples{}
	kinds := map[string]string{}
	family, help := "", ""
	type series struct {
		le, n float64
	}
	buckets := map[string]series{}
	require.True(t, strings.HasSuffix(text, "\n"))
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			help, _, ok = strings.Cut(rest, " ")
			require.True(t, ok, line)
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			require.Equal(t, help, name, "HELP comes first")
			require.Contains(t, []string{"counter", "gauge", "histogram"}, kind)
			require.NotContains(t, kinds, name, "a family comes once")
			kinds[name], family = kind, name
			require.Equal(t, kind == "counter", strings.HasSuffix(name, "_total"), line)
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		require.NotNil(t, m, line)
		value, err := strconv.ParseFloat(m[3], 64)
		require.NoError(t, err, line)
		id := strings.TrimSuffix(line, " "+m[3])
		require.NotContains(t, all, id, "a series comes once")
		all[id] = value
		if !strings.HasPrefix(line, "pgbounce_") {
			continue
		}
		if kinds[family] != "histogram" {
			require.Equal(t, family, m[1], "a sample stands behind its family's name")
			continue
		}
		of := family + "{" + lePair.ReplaceAllString(m[2], "") + "}"
		switch m[1] {
		case family + "_bucket":
			le, err := strconv.ParseFloat(lePair.FindStringSubmatch(m[2])[1], 64)
			require.NoError(t, err, line)
			before, later := buckets[of]
			require.True(t, !later || le > before.le && value >= before.n, "buckets grow: %s", line)
			buckets[of] = series{le, value}
		case family + "_count":
			require.True(t, math.IsInf(buckets[of].le, 1), line)
			require.Equal(t, buckets[of].n, value, "all are below infinity: %s", line)
			delete(buckets, of)
		default:
			require.Equal(t, family+"_sum", m[1])
		}
	}
	require.Empty(t, buckets, "histograms without a count")
	return all
}

func scrape(t *testing.T, url string) (status int, text string) {
	t.Helper()
	r, err := http.Get(url)
	require.NoError(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, string(body)
}

// eventually waits for a condition, on the goroutine of the test.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "it does not come")
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

func TestMetricsAgreeWithTheTraffic(t *testing.T) {
	t.Parallel()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	f, addr := newFolder(t), freeAddr(t)
	c := start(t, f.write(t, testserver.Postgres(t), "default_pool_size = 1", "reserve_pool_size = 3", "max_db_client_connections = 9",
		"log_stats = 1", "stats_period = 1", "[pgbounce]", "metrics_addr = "+addr))
	c.waitFor(t, up)
	metrics := func() samples {
		status, text := scrape(t, "http://"+addr+"/metrics")
		require.Equal(t, http.StatusOK, status)
		return parseMetrics(t, text)
	}
	const pool = `{database="db",user="postgres"}`
	in := func(labels string) string { return strings.TrimSuffix(pool, "}") + "," + labels + "}" }

	before := metrics()
	require.Equal(t, 0.0, before["pgbounce_clients"])
	require.Equal(t, 100.0, before["pgbounce_clients_limit"])
	require.Equal(t, 9.0, before[`pgbounce_database_clients_limit{database="db"}`])
	require.NotContains(t, before, "pgbounce_queries_total"+pool, "a pool comes with its first client")
	require.Positive(t, before["process_resident_memory_bytes"])
	require.Positive(t, before["go_goroutines"])

	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	for range 5 {
		_, err = conn.Exec(t.Context(), "select 1") // without arguments: a simple query
		require.NoError(t, err)
	}
	_, err = conn.Exec(t.Context(), "select pg_sleep(0.3)")
	require.NoError(t, err)
	for n := range 3 { // Parse, Describe, Sync once, and three times Bind, Execute, Sync
		require.NoError(t, conn.QueryRow(t.Context(), "select $1::int", n).Scan(&n))
	}
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), "select 2")
	require.NoError(t, err)

	// Another one has to wait.
	other, err := f.connect(t.Context())
	require.NoError(t, err)
	defer other.Close(context.Background())
	answered := make(chan error, 1)
	go func() {
		_, err := other.Exec(context.Background(), "select 3")
		answered <- err
	}()
	var now samples
	eventually(t, func() bool {
		now = metrics()
		return now["pgbounce_pool_clients"+in(`state="waiting"`)] == 1
	})
	require.Equal(t, 1.0, now["pgbounce_pool_clients"+in(`state="active"`)])
	require.Equal(t, 1.0, now["pgbounce_pool_servers"+in(`state="active"`)])
	require.Equal(t, 0.0, now["pgbounce_pool_servers"+in(`state="idle"`)])
	require.Equal(t, 1.0, now["pgbounce_pool_servers_limit"+pool])
	require.Equal(t, 3.0, now["pgbounce_pool_reserve_limit"+pool])
	require.Equal(t, 2.0, now["pgbounce_clients"])
	require.Equal(t, 1.0, now["pgbounce_prepared_statements"])
	eventually(t, func() bool { return metrics()["pgbounce_pool_max_wait_seconds"+pool] >= 0.2 })
	require.NoError(t, tx.Rollback(t.Context()))
	require.NoError(t, <-answered)

	eventually(t, func() bool {
		now = metrics()
		return now["pgbounce_pool_servers"+in(`state="idle"`)] == 1
	})
	const transactions, queries = 5 + 1 + 3 + 1 + 1, 5 + 1 + 3 + 3 + 1
	for name, want := range map[string]float64{
		"pgbounce_transactions_total":        transactions,
		"pgbounce_transaction_seconds_count": transactions,
		"pgbounce_server_assignments_total":  transactions + 1, // to prepare
		"pgbounce_wait_seconds_count":        transactions + 1,
		"pgbounce_queries_total":             queries,
		"pgbounce_query_seconds_count":       queries,
		"pgbounce_client_parses_total":       1,
		"pgbounce_server_parses_total":       1,
		"pgbounce_binds_total":               3,
		"pgbounce_client_logins_total":       2,
		"pgbounce_pool_max_wait_seconds":     0,
	} {
		require.Equal(t, want, now[name+pool], name)
	}
	require.Greater(t, now["pgbounce_sent_bytes_total"+pool], 200.0)
	require.Greater(t, now["pgbounce_received_bytes_total"+pool], 200.0)
	require.GreaterOrEqual(t, now["pgbounce_query_seconds_sum"+pool], 0.3)
	require.Less(t, now["pgbounce_query_seconds_bucket"+in(`le="0.262144"`)], float64(queries), "one slept for longer")
	require.Positive(t, now["pgbounce_query_seconds_bucket"+in(`le="0.262144"`)])
	require.Less(t, now["pgbounce_wait_seconds_bucket"+in(`le="0.131072"`)], float64(transactions+1), "one waited for longer")
	require.GreaterOrEqual(t, now["pgbounce_wait_seconds_sum"+pool], 0.2)

	// The log has PgBouncer's line.
	line := regexp.MustCompile(`"pgbounce: stats: \d+ xacts/s, [1-9]\d* queries/s, \d+ client parses/s, \d+ server parses/s, \d+ binds/s, ` +
		`in \d+ B/s, out \d+ B/s, xact \d+ us, query \d+ us, wait \d+ us"`)
	eventually(t, func() bool { return line.MatchString(c.output.String()) })

	// It tells of its end as long as a client keeps it from that.
	status, _ := scrape(t, "http://"+addr+"/healthz")
	require.Equal(t, http.StatusOK, status)
	c.signal(t, syscall.SIGTERM)
	eventually(t, func() bool {
		status, _ := scrape(t, "http://"+addr+"/healthz")
		return status == http.StatusServiceUnavailable
	})
	require.Equal(t, 2.0, metrics()["pgbounce_clients"])
	require.NoError(t, conn.Close(t.Context()))
	require.NoError(t, other.Close(t.Context()))
	require.Equal(t, 0, c.ends(t))
}

// Names come from clients.
func TestLabelsAreEscaped(t *testing.T) {
	t.Parallel()
	odd := "a\"b\\c\nd{}=,é\xff"
	s := pgbounce.Stats{
		Databases: []pgbounce.DatabaseStats{{Database: odd}, {Database: ""}},
		Pools:     []pgbounce.PoolStats{{Database: odd, User: odd}, {Database: "", User: odd}},
	}
	s.Pools[0].Queries = 7
	for i := range s.Pools[0].QueryTimes.Counts {
		s.Pools[0].QueryTimes.Counts[i] = 1
	}
	var text bytes.Buffer
	writeMetrics(&text, s)
	all := parseMetrics(t, text.String())
	const name = "a\\\"b\\\\c\\nd{}=,é\uFFFD"
	labels := fmt.Sprintf(`{database="%s",user="%s"`, name, name)
	require.Equal(t, 7.0, all["pgbounce_queries_total"+labels+"}"])
	require.Equal(t, 0.0, all[`pgbounce_database_paused{database=""}`])
	// What is below the first bound and above the last one counts too.
	require.Equal(t, 6.0, all["pgbounce_query_seconds_bucket"+labels+`,le="3.2e-05"}`])
	require.Equal(t, 28.0, all["pgbounce_query_seconds_bucket"+labels+`,le="134.217728"}`])
	require.Equal(t, 32.0, all["pgbounce_query_seconds_bucket"+labels+`,le="+Inf"}`])
}

func TestStatsLine(t *testing.T) {
	t.Parallel()
	before, now := pgbounce.Stats{Databases: make([]pgbounce.DatabaseStats, 2)}, pgbounce.Stats{Databases: make([]pgbounce.DatabaseStats, 2)}
	before.Databases[1].Transactions, before.Databases[1].Queries = 100, 200
	before.Databases[1].QueryTime = time.Second
	now.Databases[0].Transactions, now.Databases[1].Transactions = 20, 180
	now.Databases[0].Queries, now.Databases[1].Queries = 100, 200
	now.Databases[0].QueryTime, now.Databases[1].QueryTime = 200*time.Millisecond, time.Second
	now.Databases[0].TransactionTime, now.Databases[0].WaitTime = time.Second, 30*time.Millisecond
	now.Databases[0].ServerAssignments, now.Databases[0].Received, now.Databases[0].Sent = 10, 1000, 2000
	now.Databases[0].ClientParses, now.Databases[0].ServerParses, now.Databases[0].Binds = 30, 20, 40
	require.Equal(t, "stats: 10 xacts/s, 10 queries/s, 3 client parses/s, 2 server parses/s, 4 binds/s, in 100 B/s, out 200 B/s, "+
		"xact 10000 us, query 2000 us, wait 3000 us", statsLine(before, now, 10*time.Second))
	require.Equal(t, "stats: 0 xacts/s, 0 queries/s, 0 client parses/s, 0 server parses/s, 0 binds/s, in 0 B/s, out 0 B/s, "+
		"xact 0 us, query 0 us, wait 0 us", statsLine(now, before, 0), "counts of a database that went")
}

func TestOnlyTheCommandNeedsTheLibraryOfMetrics(t *testing.T) {
	t.Parallel()
	for pkg, want := range map[string]bool{"github.com/shardgram/shardgram/pgbounce": false, ".": true} {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		require.NoError(t, err)
		require.Equal(t, want, strings.Contains(string(out), "VictoriaMetrics"), pkg)
		require.Equal(t, want, strings.Contains(string(out), "shardgram/shard\n"), pkg)
	}
}

func TestTwoProcessesShareAMetricsAddress(t *testing.T) {
	t.Parallel()
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	f, addr, pg := newFolder(t), freeAddr(t), testserver.Postgres(t)
	lines := []string{"so_reuseport = 1", "unix_socket_dir =", "pidfile =", "[pgbounce]", "metrics_addr = " + addr}
	first := start(t, f.write(t, pg, lines...))
	first.waitFor(t, up)
	conn, err := pgx.Connect(t.Context(), f.dsn())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	second := start(t, f.write(t, pg, lines...))
	second.waitFor(t, up)
	first.signal(t, syscall.SIGTERM)
	first.waitFor(t, "shutting down")
	eventually(t, func() bool { // the client may have a connection to the first
		r, err := http.Get("http://" + addr + "/healthz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	for range 20 { // and it stays so
		status, _ := scrape(t, "http://"+addr+"/healthz")
		require.Equal(t, http.StatusOK, status)
		http.DefaultClient.CloseIdleConnections()
	}

	require.True(t, first.runs(), "it has a client")

	// Without so_reuseport the address is taken.
	third := start(t, newFolder(t).write(t, pg, "[pgbounce]", "metrics_addr = "+addr))
	require.Equal(t, 1, third.ends(t))
	require.Contains(t, third.output.String(), "metrics_addr: ")
}
