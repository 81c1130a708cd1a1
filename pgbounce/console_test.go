package pgbounce_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// A consoleStage is a Bouncer in front of a test's own database.
type consoleStage struct {
	*pgbounce.Bouncer
	addr     string
	database string
	served   chan error
}

// newConsoleStage starts a Bouncer that takes everybody at their word.
func newConsoleStage(t *testing.T, cfg pgbounce.Config) *consoleStage {
	t.Helper()
	pg, err := pgx.ParseConfig(testserver.Postgres(t))
	require.NoError(t, err)
	s := &consoleStage{database: pg.Database, served: make(chan error, 1)}
	if cfg.Databases == nil {
		cfg.Databases = map[string]pgbounce.Database{pg.Database: {Hosts: []string{pg.Host}, Port: int(pg.Port), User: "postgres"}}
	}
	if cfg.Auth.Type == "" {
		cfg.Auth.Type, cfg.Admins = "any", append(cfg.Admins, "postgres")
	}
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	s.Bouncer, err = pgbounce.New(cfg)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s.addr = l.Addr().String()
	go func() { s.served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.Error(t, <-s.served)
	})
	return s
}

func (s *consoleStage) dsn(user, database string) string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", user, s.addr, database)
}

// console logs in to the console.
func (s *consoleStage) console(t *testing.T, user string) *pgconn.PgConn {
	t.Helper()
	return consoleConnect(t, s.dsn(user, "pgbouncer"))
}

// client logs in to the database.
func (s *consoleStage) client(t *testing.T) *pgconn.PgConn {
	t.Helper()
	return consoleConnect(t, s.dsn("postgres", s.database)+"&application_name=tester")
}

func consoleConnect(t *testing.T, dsn string) *pgconn.PgConn {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// A consoleTable is the answer to a SHOW.
type consoleTable struct {
	fields []pgconn.FieldDescription
	rows   []map[string]string
	tag    string
}

func (c consoleTable) names() []string {
	var names []string
	for _, f := range c.fields {
		names = append(names, f.Name)
	}
	return names
}

// row returns the row that has a value in a column.
func (c consoleTable) row(t *testing.T, column, value string) map[string]string {
	t.Helper()
	i := slices.IndexFunc(c.rows, func(r map[string]string) bool { return r[column] == value })
	require.GreaterOrEqual(t, i, 0, "%s %s in %v", column, value, c.rows)
	return c.rows[i]
}

func consoleExec(ctx context.Context, c *pgconn.PgConn, sql string) (consoleTable, error) {
	var table consoleTable
	results := c.Exec(ctx, sql)
	for results.NextResult() {
		r := results.ResultReader()
		table.fields = slices.Clone(r.FieldDescriptions())
		for i, f := range table.fields {
			table.fields[i].Name = strings.Clone(f.Name)
		}
		for r.NextRow() {
			values := map[string]string{}
			for i, f := range table.fields {
				values[f.Name] = string(r.Values()[i])
			}
			table.rows = append(table.rows, values)
		}
		tag, _ := r.Close()
		table.tag = tag.String()
	}
	return table, results.Close()
}

func consoleRun(t *testing.T, c *pgconn.PgConn, sql string) consoleTable {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	table, err := consoleExec(ctx, c, sql)
	require.NoError(t, err, sql)
	return table
}

// consoleOutcome is what a command leads to: its tag, or its error.
func consoleOutcome(t *testing.T, c *pgconn.PgConn, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	table, err := consoleExec(ctx, c, sql)
	if pe, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pe.Severity + " " + pe.Code + " " + pe.Message
	}
	require.NoError(t, err, sql)
	return table.tag
}

func consoleWait(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, 15*time.Second, 2*time.Millisecond, what)
}

// consolePgBouncer starts Debian's PgBouncer, before a server of its own.
func consolePgBouncer(t *testing.T) *localserver.PgBouncer {
	t.Helper()
	h := testserver.Host(t)
	pg, err := h.Postgres(t.Context(), "postgres", localserver.PostgresConfig{})
	require.NoError(t, err)
	pb, err := h.PgBouncer(t.Context(), "pgbouncer", localserver.PgBouncerConfig{
		Of: pg, Settings: map[string]string{"admin_users": "postgres"},
	})
	require.NoError(t, err)
	return pb
}

var consoleShows = []string{
	"stats", "stats_totals", "stats_averages", "totals", "servers", "clients", "pools", "lists", "users", "databases", "fds", "sockets",
	"active_sockets", "config", "mem", "dns_hosts", "dns_zones", "version", "client_encoding", "datestyle", "timezone",
	"standard_conforming_strings", "default_transaction_isolation",
}

// Exporters look for columns by name and scan them by type. Newer PgBouncers
// have more of them in between, and have renamed one.
func TestConsoleHasTheColumnsOfPgBouncer(t *testing.T) {
	t.Parallel()
	theirs := consoleConnect(t, consolePgBouncer(t).DSN("pgbouncer"))
	ours := newConsoleStage(t, pgbounce.Config{}).console(t, "postgres")
	for _, show := range consoleShows {
		their, our := consoleRun(t, theirs, "show "+show), consoleRun(t, ours, "show "+show)
		require.Equal(t, their.tag, our.tag)
		rest := our.fields
		for _, f := range their.fields {
			name := strings.Replace(f.Name, "reserve_pool", "reserve_pool_size", 1)
			i := slices.IndexFunc(rest, func(f pgconn.FieldDescription) bool { return f.Name == name })
			require.GreaterOrEqual(t, i, 0, "show %s: %s is not in its place in %v", show, name, our.names())
			require.Equal(t, f.DataTypeOID, rest[i].DataTypeOID, "show %s: %s", show, name)
			require.Equal(t, f.DataTypeSize, rest[i].DataTypeSize, "show %s: %s", show, name)
			require.Equal(t, f.Format, rest[i].Format)
			rest = rest[i+1:]
		}
		// Where the rows are names, theirs are there.
		if key := their.fields[0].Name; key == "list" || show == "totals" || show == "mem" {
			for _, row := range their.rows {
				our.row(t, key, row[key])
			}
		}
	}
}

func TestConsoleHasTheColumnsOfNewerPgBouncers(t *testing.T) {
	t.Parallel()
	c := newConsoleStage(t, pgbounce.Config{}).console(t, "postgres")
	for show, columns := range map[string]string{
		"pools":      "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
		"clients":    "type user database replication state addr port local_addr local_port connect_time request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id",
		"databases":  "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode load_balance_hosts max_connections current_connections max_client_connections current_client_connections paused disabled",
		"peers":      "peer_id host port pool_size",
		"peer_pools": "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login",
		"state":      "key value",
		"users":      "name pool_size reserve_pool_size pool_mode max_user_connections current_connections max_user_client_connections current_client_connections",
	} {
		require.Equal(t, strings.Fields(columns), consoleRun(t, c, "show "+show).names(), show)
	}
	what := strings.Fields("server_assignment_count xact_count query_count received sent xact_time query_time wait_time client_parse_count server_parse_count bind_count client_login_count")
	columns := []string{"database"}
	for _, w := range what {
		columns = append(columns, "total_"+w)
	}
	for _, w := range what {
		columns = append(columns, "avg_"+strings.Replace(w, "received", "recv", 1))
	}
	require.Equal(t, columns, consoleRun(t, c, "show stats").names())
}

// The commands run in this order, on one session of each.
var consoleCommands = []string{
	"show version", "SHOW VERSION;", "Show  \t\n Version ; ", "select version", "show client_encoding", `"show" "version"`,
	"show", "show nope", "nope", "version", "help", "begin", "select 1", "show version; show version", "show version -- x",
	"/* x */ show version", "show pools x", "pause ünï", "pause foo-bar", "show 'version'", `pause "foo`, "set", "set x", "set x =", "set = y",
	"set client_encoding to 'x'", "SET DateStyle = iso", "set nope", "set a b c", "set max_client_conn = 'a''b", "show" + strings.Repeat("x", 80),
	strings.Repeat("a", 16), "pause " + strings.Repeat("a", 64), "set timezone = '" + strings.Repeat("a", 256) + "'",
	"resume", "resume foo", "reload x", "shutdown x", "suspend x",
	"disable", "enable", "disable pgbouncer", "pause pgbouncer", "kill pgbouncer", "reconnect pgbouncer", "wait_close pgbouncer",
	"resume pgbouncer",
	"disable foo", "enable foo", "pause foo", "resume foo", "resume foo", `PAUSE "foo"`, `resume "foo"`, "reconnect foo", "wait_close foo",
	"kill foo", "resume foo", "reconnect", "wait_close",
	"pause", "pause", "pause foo", "suspend", "kill foo", "resume", "suspend", "suspend", "pause", "resume", "resume",
	"pause foo", "suspend", "resume foo",
}

func TestConsoleAnswersAsPgBouncer(t *testing.T) {
	t.Parallel()
	theirs := consoleConnect(t, consolePgBouncer(t).DSN("pgbouncer"))
	ours := newConsoleStage(t, pgbounce.Config{Databases: map[string]pgbounce.Database{"*": {}}}).console(t, "postgres")
	for _, sql := range consoleCommands {
		require.Equal(t, consoleOutcome(t, theirs, sql), consoleOutcome(t, ours, sql), sql)
	}
}

// What PgBouncer of 1.18 does not know, or what we know better.
func TestConsoleAnswers(t *testing.T) {
	t.Parallel()
	c := newConsoleStage(t, pgbounce.Config{}).console(t, "postgres")
	for sql, want := range map[string]string{
		"":                             "",
		" ; ":                          "",
		"-- ping":                      "",
		"--\n-- x\n;":                  "",
		"-- ping\nshow version":        "ERROR 08P01 invalid command '-- ping\nshow version', use SHOW HELP;",
		"pause nope":                   "ERROR 08P01 no such database: nope",
		"resume nope":                  "ERROR 08P01 no such database: nope",
		"disable nope":                 "ERROR 08P01 no such database: nope",
		"enable nope":                  "ERROR 08P01 no such database: nope",
		"enable pgbouncer":             "ERROR 08P01 cannot enable admin db: pgbouncer",
		"kill nope":                    "ERROR 08P01 no such database: nope",
		"reconnect nope":               "ERROR 08P01 no such database: nope",
		"wait_close nope":              "ERROR 08P01 no such database: nope",
		"kill_client":                  "ERROR 08P01 invalid client pointer supplied",
		"kill_client abc":              "ERROR 08P01 invalid client pointer supplied",
		"kill_client 99999":            "ERROR 08P01 client not found",
		"set application_name = 'x'":   "SET",
		"set extra_float_digits to 3":  "SET",
		"set max_client_conn = 5":      "ERROR 0A000 SET is not supported here",
		"reload":                       "ERROR 0A000 RELOAD is not supported here",
		"show help":                    "SHOW",
		`set "" = x`:                   "ERROR 08P01 bad arguments",
		"x" + strings.Repeat("ü", 600): "ERROR 08P01 invalid command 'x" + strings.Repeat("ü", 449) + "...', use SHOW HELP;",
	} {
		require.Equal(t, want, consoleOutcome(t, c, sql), sql)
	}
}

func TestConsoleAuthorises(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{
		Auth:   pgbounce.Auth{Type: "trust", Secrets: map[string]string{"boss": "", "eye": "", "other": ""}},
		Admins: []string{"boss"}, Watchers: []string{"eye"}, MaxClients: 1,
	})
	_, err := pgconn.Connect(t.Context(), s.dsn("other", "pgbouncer"))
	require.ErrorContains(t, err, "FATAL: not allowed (SQLSTATE 08P01)")
	s.client(t)
	_, err = pgconn.Connect(t.Context(), s.dsn("postgres", s.database))
	require.ErrorContains(t, err, "max_client_conn")

	// The console is there all the same.
	boss, eye := s.console(t, "boss"), s.console(t, "eye")
	for _, show := range append(slices.Clone(consoleShows), "state", "peers", "peer_pools", "help") {
		want := "SHOW"
		if show == "fds" {
			want = "ERROR 08P01 admin access needed"
		}
		require.Equal(t, want, consoleOutcome(t, eye, "show "+show), show)
		require.Equal(t, "SHOW", consoleOutcome(t, boss, "show "+show), show)
	}
	require.Equal(t, "SET", consoleOutcome(t, eye, "set extra_float_digits = 3"))
	for _, sql := range []string{
		"pause", "resume", "suspend", "disable " + s.database, "enable " + s.database, "reconnect", "kill", "kill " + s.database,
		"kill_client 1", "reload", "wait_close", "shutdown", "shutdown wait_for_clients", "set x = y", `"SHUTDOWN"`,
	} {
		require.Equal(t, "ERROR 08P01 admin access needed", consoleOutcome(t, eye, sql), sql)
	}
	require.Equal(t, "SHOW", consoleOutcome(t, eye, "show state"))

	// In process there is nobody else.
	cfg, err := pgconn.ParseConfig(s.dsn("whoever", "pgbouncer"))
	require.NoError(t, err)
	cfg.DialFunc = s.Dial
	inside, err := pgconn.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer inside.Close(t.Context())
	require.Equal(t, "RECONNECT", consoleOutcome(t, inside, "reconnect"))
	clients := consoleRun(t, inside, "show clients")
	require.Equal(t, "memory", clients.row(t, "user", "whoever")["addr"])
}

// The same work is counted as PgBouncer counts it.
func TestConsoleCountsAsPgBouncer(t *testing.T) {
	t.Parallel()
	pb := consolePgBouncer(t)
	s := newConsoleStage(t, pgbounce.Config{})
	work := func(c *pgconn.PgConn) {
		for _, sql := range []string{"select 1", "begin", "select 2", "commit", "select repeat('x', 10000)", "select 1; select 2", "select 1/0"} {
			_, err := c.Exec(t.Context(), sql).ReadAll()
			if err != nil {
				require.ErrorContains(t, err, "division by zero")
			}
		}
		c.ExecParams(t.Context(), "select $1::int", [][]byte{[]byte("1")}, nil, nil, nil).Read()
	}
	work(consoleConnect(t, pb.DSN("postgres")))
	work(s.client(t))
	their := consoleRun(t, consoleConnect(t, pb.DSN("pgbouncer")), "show stats").row(t, "database", "postgres")
	console := s.console(t, "postgres")
	our := consoleRun(t, console, "show stats").row(t, "database", s.database)
	// A ping of the stage's own came before.
	minus := func(name string, n int) string {
		v, err := strconv.Atoi(their[name])
		require.NoError(t, err)
		return strconv.Itoa(v - n)
	}
	require.Equal(t, minus("total_xact_count", 1), our["total_xact_count"])
	require.Equal(t, minus("total_query_count", 1), our["total_query_count"])

	st := s.Stats()
	require.Len(t, st.Pools, 1)
	db := st.Databases[0]
	require.Equal(t, s.database, db.Database)
	require.Equal(t, db.Counters, st.Pools[0].Counters)
	require.Equal(t, db.Histograms, st.Pools[0].Histograms)
	require.Equal(t, "postgres", st.Pools[0].User)
	require.EqualValues(t, 6, db.Transactions)
	require.EqualValues(t, 8, db.Queries)
	require.EqualValues(t, 6, db.ServerAssignments)
	require.EqualValues(t, 1, db.ClientLogins)
	require.EqualValues(t, 1, db.ClientParses)
	require.EqualValues(t, 1, db.Binds)
	require.Greater(t, db.Sent, int64(10_000))
	require.Positive(t, db.QueryTime)
	require.GreaterOrEqual(t, db.TransactionTime, db.QueryTime)
	for sum, h := range map[time.Duration]pgbounce.Histogram{db.WaitTime: db.WaitTimes, db.QueryTime: db.QueryTimes, db.TransactionTime: db.TransactionTimes} {
		require.Equal(t, sum, h.Sum)
	}
	count := func(h pgbounce.Histogram) (n int64) {
		for _, c := range h.Counts {
			n += c
		}
		return n
	}
	require.Equal(t, db.Queries, count(db.QueryTimes))
	require.Equal(t, db.Transactions, count(db.TransactionTimes))
	require.Equal(t, db.ServerAssignments, count(db.WaitTimes))

	// All SHOWs read the same numbers, under other names.
	totals := consoleRun(t, console, "show totals")
	plain := consoleRun(t, console, "show stats_totals").row(t, "database", s.database)
	for stats, other := range map[string][2]string{
		"total_xact_count": {"xact_count", "total_xact_count"}, "total_query_count": {"query_count", "total_query_count"},
		"total_received": {"bytes_received", "total_client_bytes"}, "total_sent": {"bytes_sent", "total_server_bytes"},
		"total_xact_time": {"xact_time", "total_xact_time"}, "total_query_time": {"query_time", "total_query_time"},
		"total_wait_time": {"wait_time", "total_wait_time"}, "total_client_parse_count": {"client_parse_count", "total_ps_client_parse_count"},
		"total_server_parse_count": {"server_parse_count", "total_ps_server_parse_count"}, "total_bind_count": {"bind_count", "total_ps_bind_count"},
		"total_server_assignment_count": {"server_assignment_count", "total_server_assignment_count"},
		"total_client_login_count":      {"client_login_count", "total_client_login_count"},
	} {
		require.Equal(t, our[stats], plain[other[0]], stats)
		require.Equal(t, our[stats], totals.row(t, "name", other[1])["value"], stats)
	}
	require.Equal(t, strconv.FormatInt(db.Received, 10), our["total_received"])
	require.Equal(t, strconv.FormatInt(db.QueryTime.Microseconds(), 10), our["total_query_time"])
}

func TestConsoleAverages(t *testing.T) {
	t.Parallel()
	type c = pgbounce.Counters
	for name, test := range map[string]struct {
		at       []time.Duration
		counters []pgbounce.Counters
		want     [12]int64
	}{
		"YoungerThanAPeriod": {
			[]time.Duration{30 * time.Second},
			[]c{{Queries: 300, QueryTime: 600 * time.Millisecond}},
			[12]int64{2: 10, 6: 2000},
		},
		"OverTheLastPeriodAndWhatCameSince": {
			[]time.Duration{59 * time.Second, 60 * time.Second, 120 * time.Second, 180 * time.Second, 200 * time.Second},
			[]c{
				{Queries: 7},
				{Queries: 100, Received: 1000},
				{Queries: 200, Received: 2000, ServerAssignments: 4},
				{Queries: 400, Received: 4000},
				{Queries: 1000, Received: 10_000, ServerAssignments: 8, WaitTime: 4 * time.Millisecond},
			},
			[12]int64{2: 10, 3: 100, 7: 1000}, // since 120 s; 4 assignments in 80 s are 0 a second
		},
		"APoolThatCameLately": {
			[]time.Duration{3650 * time.Second},
			[]c{{Transactions: 1100}},
			[12]int64{1: 10}, // since 3540 s
		},
		"NothingSince": {
			[]time.Duration{60 * time.Second, 120 * time.Second, 180 * time.Second},
			[]c{{Queries: 5, QueryTime: time.Second}, {Queries: 5, QueryTime: time.Second}, {Queries: 5, QueryTime: time.Second}},
			[12]int64{},
		},
	} {
		require.Equal(t, test.want, pgbounce.Averages(test.at, test.counters), name)
	}
}

func TestConsoleShowsWhoHasWhat(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{PoolSize: 1})
	console := s.console(t, "postgres")
	busy, waiting, idle := s.client(t), s.client(t), s.client(t)
	consoleRun(t, idle, "select 1")
	consoleRun(t, busy, "begin")
	waited := make(chan error, 1)
	go func() { _, err := waiting.Exec(context.Background(), "select 1").ReadAll(); waited <- err }()
	consoleWait(t, "a client waits", func() bool { return s.Stats().Pools[0].ClientsWaiting == 1 })

	pool := consoleRun(t, console, "show pools").row(t, "database", s.database)
	require.Equal(t, "2 1 1 0 0", strings.Join([]string{pool["cl_active"], pool["cl_waiting"], pool["sv_active"], pool["sv_idle"], pool["sv_login"]}, " "))
	require.Equal(t, "transaction", pool["pool_mode"])
	require.Positive(t, s.Stats().Pools[0].MaxWait)
	clients := consoleRun(t, console, "show clients")
	require.Len(t, clients.rows, 4)
	server := consoleRun(t, console, "show servers").row(t, "type", "S")
	active := clients.row(t, "state", "waiting")
	require.Equal(t, "", active["link"])
	active = clients.row(t, "link", server["ptr"])
	require.Equal(t, "active", active["state"])
	require.Equal(t, active["ptr"], server["link"])
	require.Equal(t, "active", server["state"])
	require.Equal(t, "tester", active["application_name"])
	require.Equal(t, "127.0.0.1", active["addr"])
	require.Equal(t, s.addr, active["local_addr"]+":"+active["local_port"])
	require.Equal(t, fmt.Sprint(consoleLocalPort(busy)), active["port"])
	require.Equal(t, fmt.Sprint(consoleLocalPort(idle)), clients.row(t, "state", "idle")["port"])
	require.Equal(t, "pgbouncer", clients.row(t, "port", fmt.Sprint(consoleLocalPort(console)))["database"])
	pid := consoleRun(t, busy, "select pg_backend_pid() pid").rows[0]["pid"]
	require.Equal(t, pid, server["remote_pid"])
	since, err := time.Parse("2006-01-02 15:04:05 MST", active["connect_time"])
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), since, time.Minute)
	sockets := consoleRun(t, console, "show sockets")
	require.Equal(t, "cl_active", sockets.row(t, "ptr", active["ptr"])["state"])
	require.Equal(t, "sv_active", sockets.row(t, "ptr", server["ptr"])["state"])
	require.Equal(t, "cl_waiting", consoleRun(t, console, "show active_sockets").rows[0]["state"])
	fd := consoleRun(t, console, "show fds").row(t, "task", "server")
	require.Empty(t, fd["password"]+fd["cancel"]+fd["scram_client_key"])
	lists := consoleRun(t, console, "show lists")
	for name, n := range map[string]string{"databases": "1", "pools": "1", "used_clients": "4", "login_clients": "0", "used_servers": "1"} {
		require.Equal(t, n, lists.row(t, "list", name)["items"], name)
	}
	db := consoleRun(t, console, "show databases").row(t, "name", s.database)
	require.Equal(t, "1 3 1 0 0", strings.Join([]string{db["current_connections"], db["current_client_connections"], db["pool_size"], db["paused"], db["disabled"]}, " "))

	consoleRun(t, busy, "commit")
	require.NoError(t, <-waited)
	require.Positive(t, s.Stats().Databases[0].WaitTime)
	consoleWait(t, "the server is idle", func() bool { return s.Stats().Pools[0].ServersIdle == 1 })
	require.Zero(t, s.Stats().Pools[0].ServersActive)
	require.Equal(t, "idle", consoleRun(t, console, "show servers").rows[0]["state"])
	require.Equal(t, "", consoleRun(t, console, "show servers").rows[0]["link"])
}

func consoleLocalPort(c *pgconn.PgConn) int { return c.Conn().LocalAddr().(*net.TCPAddr).Port }

func TestConsolePauses(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	console, other, client := s.console(t, "postgres"), s.console(t, "postgres"), s.client(t)
	state := func(key string) string { return consoleRun(t, other, "show state").row(t, "key", key)["value"] }
	paused := func() string { return consoleRun(t, other, "show databases").row(t, "name", s.database)["paused"] }
	pause := func(ctx context.Context, sql string) chan error {
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			_, err := consoleExec(ctx, console, sql)
			done <- err
		}()
		return done
	}
	for _, sql := range []string{"pause", "pause " + s.database} {
		consoleRun(t, client, "begin")
		done := pause(t.Context(), sql)
		consoleWait(t, "it is paused", func() bool { return paused() == "1" })
		require.Empty(t, done, "a transaction is under way")
		require.Equal(t, map[bool]string{true: "yes", false: "no"}[sql == "pause"], state("paused"))
		consoleRun(t, client, "commit")
		require.NoError(t, <-done)
		require.Empty(t, consoleRun(t, other, "show servers").rows)
		require.Equal(t, "RESUME", consoleOutcome(t, other, strings.Replace(sql, "pause", "resume", 1)))
		consoleRun(t, client, "select 1")
		require.Equal(t, "no yes", state("paused")+" "+state("active"))
	}

	// Who presses ^C has not paused it.
	consoleRun(t, client, "begin")
	done := pause(t.Context(), "pause")
	consoleWait(t, "it is paused", func() bool { return paused() == "1" })
	require.NoError(t, console.CancelRequest(t.Context()))
	require.ErrorContains(t, <-done, "57014")
	require.Equal(t, "0 yes", paused()+" "+state("active"))
	require.Equal(t, "SHOW", consoleOutcome(t, console, "show version"))
	// A cancel request when nothing waits does nothing.
	require.NoError(t, console.CancelRequest(t.Context()))
	require.Equal(t, "SHOW", consoleOutcome(t, console, "show version"))

	// Who leaves has: the command of a script that was killed still counts.
	gone, f := s.wire(t)
	f.Send(&pgproto3.Query{String: "pause"})
	require.NoError(t, f.Flush())
	consoleWait(t, "it is paused", func() bool { return paused() == "1" })
	require.NoError(t, gone.Close())
	consoleWait(t, "the session is gone", func() bool { return s.Stats().Consoles == 2 })
	require.Equal(t, "1 yes", paused()+" "+state("paused"))
	consoleRun(t, client, "commit")
	consoleRun(t, other, "resume")
}

func TestConsoleSuspends(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	console, other, client := s.console(t, "postgres"), s.console(t, "postgres"), s.client(t)
	consoleRun(t, client, "select 1")
	require.Equal(t, "SUSPEND", consoleOutcome(t, console, "suspend"))
	require.Equal(t, "yes", consoleRun(t, other, "show state").row(t, "key", "suspended")["value"])
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	answered := make(chan error, 1)
	go func() { _, err := consoleExec(ctx, client, "select 1"); answered <- err }()
	require.Equal(t, "ERROR 08P01 already suspended/paused", consoleOutcome(t, other, "pause"))
	require.Empty(t, answered)
	// An admin who is gone cannot resume it.
	require.NoError(t, console.Close(t.Context()))
	require.NoError(t, <-answered)
	require.False(t, s.Stats().Suspended)
}

func TestConsoleKills(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	console := s.console(t, "postgres")
	one, two := s.client(t), s.client(t)
	consoleRun(t, one, "select 1")
	consoleRun(t, two, "select 1")
	idOf := func(c *pgconn.PgConn) string {
		return consoleRun(t, console, "show clients").row(t, "port", fmt.Sprint(consoleLocalPort(c)))["id"]
	}
	require.Equal(t, "KILL_CLIENT", consoleOutcome(t, console, "kill_client "+idOf(one)))
	_, err := one.Exec(t.Context(), "select 1").ReadAll()
	require.ErrorContains(t, err, "admin forced disconnect")
	consoleRun(t, two, "select 1")

	third := s.console(t, "postgres")
	require.Equal(t, "KILL_CLIENT", consoleOutcome(t, console, "kill_client "+idOf(third)))
	_, err = third.Exec(t.Context(), "show version").ReadAll()
	require.Error(t, err)
	consoleWait(t, "the session is gone", func() bool { return s.Stats().Consoles == 1 })

	require.Equal(t, "KILL", consoleOutcome(t, console, "kill "+s.database))
	_, err = two.Exec(t.Context(), "select 1").ReadAll()
	require.Error(t, err)
	consoleWait(t, "nothing is left", func() bool {
		return len(consoleRun(t, console, "show clients").rows) == 1 && len(consoleRun(t, console, "show servers").rows) == 0
	})
	require.Equal(t, "RESUME", consoleOutcome(t, console, "resume "+s.database))
	consoleRun(t, s.client(t), "select 1")

	require.Equal(t, "DISABLE", consoleOutcome(t, console, "disable "+s.database))
	_, err = pgconn.Connect(t.Context(), s.dsn("postgres", s.database))
	require.ErrorContains(t, err, "disabled")
	require.Equal(t, "ENABLE", consoleOutcome(t, console, "enable "+s.database))

	client := s.client(t)
	pid := consoleRun(t, client, "select pg_backend_pid() pid").rows
	consoleRun(t, console, "reconnect "+s.database)
	consoleRun(t, console, "wait_close "+s.database)
	require.NotEqual(t, pid, consoleRun(t, client, "select pg_backend_pid() pid").rows)
}

func TestConsoleHooks(t *testing.T) {
	t.Parallel()
	var reloads atomic.Int64
	var set, stopped []string
	s := newConsoleStage(t, pgbounce.Config{Admin: pgbounce.AdminHooks{
		Reload: func(context.Context) error {
			if reloads.Add(1) > 1 {
				return errors.New("broken file")
			}
			return nil
		},
		Settings: func() [][4]string { return [][4]string{{"max_client_conn", "7", "100", "yes"}} },
		Set: func(key, value string) error {
			if key == "bad" {
				return errors.New("pgbounce: unknown setting bad")
			}
			set = append(set, key+"|"+value)
			return nil
		},
		Stop: func(after string) { stopped = append(stopped, after) },
	}})
	c := s.console(t, "postgres")
	require.Equal(t, "RELOAD", consoleOutcome(t, c, "reload"))
	require.Equal(t, "ERROR F0000 RELOAD failed, see logs for additional details", consoleOutcome(t, c, "reload;"))
	require.Equal(t, []map[string]string{{"key": "max_client_conn", "value": "7", "default": "100", "changeable": "yes"}}, consoleRun(t, c, "show config").rows)
	require.Equal(t, "SET Max_Client_Conn=5", consoleOutcome(t, c, "set Max_Client_Conn = 5"))
	require.Equal(t, "SET server_reset_query=it's; x", consoleOutcome(t, c, "SET server_reset_query TO 'it''s; x' ;"))
	require.Equal(t, `SET x=a"b`, consoleOutcome(t, c, `set "x"="a""b"`))
	require.Equal(t, "ERROR 08P01 SET failed: unknown setting bad", consoleOutcome(t, c, "set bad=1"))
	require.Equal(t, "SHUTDOWN", consoleOutcome(t, c, "shutdown wait_for_servers"))
	require.Equal(t, "SHUTDOWN", consoleOutcome(t, c, "SHUTDOWN WAIT_FOR_CLIENTS"))
	require.Equal(t, "SHOW", consoleOutcome(t, c, "show version")) // which waits for the hook
	require.Equal(t, []string{"Max_Client_Conn|5", "server_reset_query|it's; x", `x|a"b`}, set)
	require.Equal(t, []string{"transactions", "clients"}, stopped)
}

func TestConsoleShowsTheConfig(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{
		PoolSize: 7, QueryTimeout: 1500 * time.Millisecond, ServerIdleTimeout: -1, Admins: []string{"a", "b"}, ServerRoundRobin: true,
		Users: map[string]pgbounce.User{"u": {PoolSize: 3, ReservePoolSize: -1, Mode: pgbounce.Session, MaxClients: 9}},
		Peers: map[int]pgbounce.Peer{3: {Host: "/tmp", Port: 6000}}, PeerID: 2,
	})
	c := s.console(t, "postgres")
	config := consoleRun(t, c, "show config")
	for key, want := range map[string]string{
		"default_pool_size": "7 20", "query_timeout": "1.5 0", "server_idle_timeout": "0 600", "admin_users": "a,b,postgres ",
		"server_round_robin": "1 0", "pool_mode": "transaction transaction", "server_reset_query": "DISCARD ALL DISCARD ALL",
	} {
		row := config.row(t, "key", key)
		require.Equal(t, want, row["value"]+" "+row["default"], key)
		require.Equal(t, "no", row["changeable"])
	}
	u := consoleRun(t, c, "show users").row(t, "name", "u")
	require.Equal(t, "3 0 session 9", strings.Join([]string{u["pool_size"], u["reserve_pool_size"], u["pool_mode"], u["max_user_client_connections"]}, " "))
	require.Equal(t, "/tmp", consoleRun(t, c, "show peers").row(t, "peer_id", "3")["host"])
	require.Len(t, consoleRun(t, c, "show peer_pools").rows, 1)
	require.Regexp(t, `PgBouncer \d+\.\d+\.\d+`, consoleRun(t, c, "show version").rows[0]["version"])
}

func TestConsoleShutsDown(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ command, answer string }{
		"AtOnce":               {"shutdown", "FATAL 57P01 pooler is shutting down"},
		"AfterTransactions":    {"shutdown wait_for_servers", "SHUTDOWN"},
		"AfterClientsHaveLeft": {"shutdown wait_for_clients", "SHUTDOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newConsoleStage(t, pgbounce.Config{})
			console, client := s.console(t, "postgres"), s.client(t)
			consoleRun(t, client, "begin")
			require.Equal(t, test.answer, consoleOutcome(t, console, test.command))
			if name == "AtOnce" {
				_, err := client.Exec(t.Context(), "commit").ReadAll()
				require.Error(t, err)
				return
			}
			_, err := pgconn.Connect(t.Context(), s.dsn("postgres", "pgbouncer"))
			require.Error(t, err)
			consoleRun(t, client, "commit")
			if name == "AfterClientsHaveLeft" {
				consoleRun(t, client, "select 1")
				require.NoError(t, client.Close(t.Context()))
				require.NoError(t, console.Close(t.Context()))
			} else {
				_ = consoleEnd(console)
			}
			require.ErrorIs(t, <-s.served, pgbounce.ErrClosed)
			s.served <- pgbounce.ErrClosed
		})
	}
}

// consoleEnd reads until the connection ends, and returns why it did.
func consoleEnd(c *pgconn.PgConn) error {
	_ = c.Conn().SetDeadline(time.Now().Add(10 * time.Second))
	for {
		if _, err := c.Conn().Read(make([]byte, 512)); err != nil {
			return err
		}
	}
}

func TestConsoleWithPgx(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	cfg, err := pgx.ParseConfig(s.dsn("postgres", "pgbouncer") + "&extra_float_digits=3&search_path=x&application_name=me")
	require.NoError(t, err)
	cfg.RuntimeParams["options"] = "-c geqo=off"
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	c, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer c.Close(t.Context())
	require.NoError(t, c.Ping(t.Context()))
	// A value of each type is what its column says.
	s.client(t)
	for _, show := range consoleShows {
		rows, err := c.Query(t.Context(), "show "+show)
		require.NoError(t, err)
		for rows.Next() {
			_, err := rows.Values()
			require.NoError(t, err, show)
		}
		require.NoError(t, rows.Err(), show)
	}
	var name string
	require.NoError(t, c.QueryRow(t.Context(), "show application_name").Scan(&name))
	require.Equal(t, "me", name)

	// Its other modes are refused, and do no harm.
	const refusal = "extended query protocol not supported by admin console (SQLSTATE 08P01)"
	_, err = c.PgConn().Prepare(t.Context(), "x", "show version", nil)
	require.ErrorContains(t, err, refusal)
	require.NoError(t, c.Ping(t.Context()))
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeDescribeExec} {
		_, err = c.Exec(t.Context(), "show $1", mode, "version")
		require.ErrorContains(t, err, refusal)
		require.NoError(t, c.Ping(t.Context()))
	}
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	require.NoError(t, db.PingContext(t.Context()))
	var key, value sql.NullString
	require.NoError(t, db.QueryRowContext(t.Context(), "show state").Scan(&key, &value))
	require.Equal(t, "active yes", key.String+" "+value.String)
}

func TestConsoleWithPsql(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	require.NoError(t, err) // it comes with the server
	s := newConsoleStage(t, pgbounce.Config{})
	out, err := exec.CommandContext(t.Context(), psql, "-X", "-A", "-w", s.dsn("postgres", "pgbouncer"),
		"-c", "show databases", "-c", "show help", "-c", "pause", "-c", "nope", "-c", "resume").CombinedOutput()
	require.NoError(t, err, string(out))
	for _, want := range []string{"name|host|port|database|", "\n" + s.database + "|", "(1 row)", "NOTICE:  Console usage\nDETAIL:  \n\tSHOW HELP", "\nPAUSE\n", "ERROR:  invalid command 'nope'", "RESUME"} {
		require.Contains(t, string(out), want)
	}
}

// A consoleWire is a session without a library.
func (s *consoleStage) wire(t *testing.T) (net.Conn, *pgproto3.Frontend) {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "postgres", "database": "pgbouncer"}})
	require.NoError(t, f.Flush())
	require.Equal(t, "R S S S S S S S S S K Z", consoleKinds(f))
	return conn, f
}

// consoleKinds returns the kinds of messages up to the first Z, or to the end.
func consoleKinds(f *pgproto3.Frontend) string {
	var kinds []string
	for {
		m, err := f.Receive()
		if err != nil {
			return strings.Join(append(kinds, "end"), " ")
		}
		switch m := m.(type) {
		case *pgproto3.AuthenticationOk:
			kinds = append(kinds, "R")
		case *pgproto3.ParameterStatus:
			kinds = append(kinds, "S")
		case *pgproto3.BackendKeyData:
			kinds = append(kinds, "K")
		case *pgproto3.RowDescription:
			kinds = append(kinds, "T")
		case *pgproto3.DataRow:
			kinds = append(kinds, "D")
		case *pgproto3.CommandComplete:
			kinds = append(kinds, "C")
		case *pgproto3.EmptyQueryResponse:
			kinds = append(kinds, "I")
		case *pgproto3.NoticeResponse:
			kinds = append(kinds, "N")
		case *pgproto3.ErrorResponse:
			kinds = append(kinds, m.Severity)
		case *pgproto3.ReadyForQuery:
			return strings.Join(append(kinds, "Z"), " ")
		}
	}
}

func TestConsoleMessages(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	message := func(kind byte, body string) string {
		return string(kind) + string(binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))) + body
	}
	query := func(sql string) string { return message('Q', sql+"\x00") }
	version := query("show version")
	const ok = "T D C Z"
	for name, test := range map[string]struct {
		send string
		want []string
	}{
		"TwoQueriesInOneWrite":      {version + version, []string{ok, ok}},
		"Sync":                      {message('S', ""), []string{"Z"}},
		"NothingBeforeSync":         {message('P', "\x00show version\x00\x00\x00") + message('B', "") + version + message('S', "") + version, []string{"ERROR Z", ok}},
		"FlushAlone":                {message('H', "") + version, []string{ok}},
		"FunctionCall":              {message('F', "xxxxxx") + version, []string{"ERROR Z", ok}},
		"LateCopy":                  {message('d', "xxx") + message('c', "") + message('f', "no\x00") + version, []string{ok}},
		"QueryWithoutEnd":           {message('Q', "show version") + version, []string{"ERROR Z", ok}},
		"QueryWithMoreBehindIt":     {message('Q', "show version\x00x\x00") + version, []string{"ERROR Z", ok}},
		"EmptyQuery":                {message('Q', "") + version, []string{"ERROR Z", ok}},
		"Zeros":                     {message('Q', "\x00") + version, []string{"I Z", ok}},
		"InvalidUTF8":               {query("show \xff\xfe\x80"), []string{"ERROR Z"}},
		"NearlyTooLong":             {query(strings.Repeat("x", 64<<10-1)) + version, []string{"ERROR Z", ok}},
		"TooLong":                   {query(strings.Repeat("x", 64<<10)), []string{"FATAL end"}},
		"AGigabyte":                 {"Q\x40\x00\x00\x00", []string{"FATAL end"}},
		"NegativeLength":            {"Q\xff\xff\xff\xff", []string{"FATAL end"}},
		"LengthOfThree":             {"Q\x00\x00\x00\x03", []string{"FATAL end"}},
		"UnknownKind":               {message('z', ""), []string{"FATAL end"}},
		"ZeroKind":                  {message(0, ""), []string{"FATAL end"}},
		"Terminate":                 {version + message('X', "") + version, []string{ok, "end"}},
		"ManyExtendedAndThenNoSync": {strings.Repeat(message('E', "\x00\x00\x00\x00\x00"), 100) + message('X', ""), []string{"ERROR end"}},
	} {
		conn, f := s.wire(t)
		_, err := conn.Write([]byte(test.send))
		require.NoError(t, err, name)
		for _, want := range test.want {
			require.Equal(t, want, consoleKinds(f), name)
		}
	}
	// Half a message holds nothing up.
	conn, _ := s.wire(t)
	_, err := conn.Write([]byte(version[:7]))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// A session outlives the time for a login, and ends with the Bouncer.
func TestConsoleOutlivesTheLoginTimeout(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{ClientLoginTimeout: 200 * time.Millisecond})
	console, pausing := s.console(t, "postgres"), s.console(t, "postgres")
	// PostgreSQL's clock tells that the time is over.
	_, err := s.client(t).Exec(t.Context(), "select pg_sleep(0.5)").ReadAll()
	require.NoError(t, err)
	require.Equal(t, "SHOW", consoleOutcome(t, console, "show version"))
	client := s.client(t)
	consoleRun(t, client, "begin")
	paused := make(chan error, 1)
	go func() { _, err := consoleExec(context.Background(), pausing, "pause"); paused <- err }()
	consoleWait(t, "it is paused", func() bool { return s.Stats().Paused })
	require.NoError(t, s.Close())
	require.Error(t, <-paused)
	_, err = console.ReceiveMessage(t.Context())
	require.ErrorContains(t, err, "pooler is shutting down")
	require.Zero(t, s.Stats().Consoles)
}

// Whatever comes and goes meanwhile, what is shown is whole.
func TestConsoleUnderLoad(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{PoolSize: 3, Loops: 2})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 8)
	for i := range cap(ended) {
		go func() {
			for ctx.Err() == nil {
				c, err := pgconn.Connect(ctx, s.dsn("postgres", s.database)+fmt.Sprintf("&application_name=c%d", i))
				if err != nil {
					continue
				}
				for range 20 {
					_, err = c.Exec(ctx, "begin; select 1; commit").ReadAll()
					if err != nil {
						break
					}
					c.ExecParams(ctx, "select 1", nil, nil, nil, nil).Read()
				}
				if i%2 == 0 {
					_ = c.Conn().Close()
				} else {
					_ = c.Close(context.Background())
				}
			}
			ended <- nil
		}()
	}
	console := s.console(t, "postgres")
	shows := append(slices.Clone(consoleShows), "state")
	var last int64
	for i := range 10 * len(shows) {
		table := consoleRun(t, console, "show "+shows[i%len(shows)])
		ids := map[string]bool{}
		for _, row := range table.rows {
			if id := row["id"]; id != "" {
				require.False(t, ids[id+row["type"]], "twice: %v", row)
				ids[id+row["type"]] = true
			}
		}
		st := s.Stats()
		for _, p := range st.Pools {
			require.LessOrEqual(t, p.ServersActive+p.ServersIdle+p.ServersUsed+p.ServersLogin+p.ServersBeingCanceled, 3)
			require.GreaterOrEqual(t, p.Queries, last)
			last = p.Queries
		}
		var commands []string
		switch i % 50 {
		case 10:
			commands = []string{"pause", "resume"}
		case 20:
			commands = []string{"reconnect", "wait_close"}
		case 30:
			commands = []string{"suspend", "resume"}
		case 40:
			commands = []string{"kill " + s.database, "resume " + s.database}
		default:
			continue
		}
		for _, sql := range commands {
			verb, _, _ := strings.Cut(sql, " ")
			require.Equal(t, strings.ToUpper(verb), consoleOutcome(t, console, sql))
		}
		before := s.Stats().Databases[0].Queries
		consoleWait(t, "clients go on after "+strings.Join(commands, ", "), func() bool { return s.Stats().Databases[0].Queries > before+10 })
	}
	cancel()
	for range cap(ended) {
		<-ended
	}
	require.Positive(t, last)
	consoleWait(t, "all are gone", func() bool { return s.Stats().Clients == 1 })
}

// Pools are told apart, and put together, by database and user.
func TestStatsOfManyPools(t *testing.T) {
	t.Parallel()
	pg, err := pgx.ParseConfig(testserver.Postgres(t))
	require.NoError(t, err)
	dbs := map[string]pgbounce.Database{}
	for i := range 30 {
		dbs[fmt.Sprintf("db%02d", i)] = pgbounce.Database{Hosts: []string{pg.Host}, Port: int(pg.Port), Name: pg.Database, User: "postgres"}
	}
	s := newConsoleStage(t, pgbounce.Config{Databases: dbs})
	for name := range dbs {
		consoleRun(t, consoleConnect(t, s.dsn("postgres", name)), "select 1")
	}
	replication := s.dsn("postgres", "db07") + "&replication=database"
	consoleRun(t, consoleConnect(t, replication), "IDENTIFY_SYSTEM")
	st := s.Stats()
	require.Len(t, st.Databases, 30)
	require.Len(t, st.Pools, 30)
	for i, p := range st.Pools {
		require.Equal(t, fmt.Sprintf("db%02d", i), p.Database)
		require.Equal(t, p.Database, st.Databases[i].Database)
		want := 1
		if i == 7 {
			want = 2
		}
		require.EqualValues(t, want, p.Queries)
		require.Equal(t, want, p.ClientsActive)
		require.Equal(t, pgbounce.Transaction, p.Mode)
	}
	console := s.console(t, "postgres")
	require.Equal(t, "logical", consoleRun(t, console, "show clients").row(t, "replication", "logical")["replication"])
	require.Len(t, consoleRun(t, console, "show pools").rows, 30)
	require.Len(t, consoleRun(t, console, "show stats").rows, 30)
}

// A word in quotes means the same as without, and what is accepted can be
// written again.
func FuzzParseCommand(f *testing.F) {
	for _, sql := range consoleCommands {
		f.Add(sql)
	}
	f.Add("SET a = 'x''y' ;")
	f.Add(`set "a""b"to "c"`)
	f.Add("set a to b")
	quote := func(s, q string) string { return q + strings.ReplaceAll(s, q, q+q) + q }
	f.Fuzz(func(t *testing.T, sql string) {
		verb, arg, key, value, ok := pgbounce.ParseCommand(sql)
		if !ok {
			return
		}
		require.LessOrEqual(t, len(verb)+len(arg)+len(key)+len(value), len(sql))
		again := quote(verb, `"`)
		switch {
		case key != "":
			require.Equal(t, "set", verb)
			require.Empty(t, arg)
			again = "set " + quote(key, `"`) + " = " + quote(value, "'")
		case arg != "":
			again += " " + quote(arg, `"`)
		}
		v, a, k, w, ok := pgbounce.ParseCommand(again + " ; ")
		require.True(t, ok, again)
		require.Equal(t, []string{verb, arg, key, value}, []string{v, a, k, w})
	})
}

// With auth_type any a name proves nothing: everybody may look, and those who
// say an admin's name are admins.
func TestConsoleAuthorisesAny(t *testing.T) {
	t.Parallel()
	s := newConsoleStage(t, pgbounce.Config{})
	other := s.console(t, "other")
	require.Equal(t, "SHOW", consoleOutcome(t, other, "show pools"))
	require.Equal(t, "ERROR 08P01 admin access needed", consoleOutcome(t, other, "pause"))
}
