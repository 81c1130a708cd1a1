package pgbounce_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// show asks a PgBouncer's console.
func show(t *testing.T, b *localserver.PgBouncer, what string) []map[string]string {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), b.DSN("pgbouncer"))
	require.NoError(t, err)
	results, err := c.Exec(t.Context(), "show "+what).ReadAll()
	require.NoError(t, err)
	require.NoError(t, c.Close(t.Context()))
	var lines []map[string]string
	for _, row := range results[0].Rows {
		line := map[string]string{}
		for i, f := range results[0].FieldDescriptions {
			line[f.Name] = string(row[i])
		}
		lines = append(lines, line)
	}
	return lines
}

// differ says where the settings that both know are not the same.
func differ(t *testing.T, b *localserver.PgBouncer, f *pgbounce.File) (compared int, differences []string) {
	t.Helper()
	// Defaults of PgBouncer that have changed since 1.18, and two that show
	// another text for the same.
	changed := map[string]string{
		"auth_query": "has schemas", "server_check_query": "was select 1", "client_tls_ciphers": "was fast",
		"server_tls_ciphers": "was fast", "server_tls_sslmode": "was disable", "verbose": "has none",
		"unix_socket_mode": "shows 511", "listen_addr": "",
	}
	unsupported := map[string]bool{}
	for _, k := range pgbounce.DocKeys() {
		unsupported[k.Name] = k.Section == "pgbouncer" && k.Why != ""
	}
	ours := settingsOf(f)
	for _, theirs := range show(t, b, "config") {
		key := theirs["key"]
		our, ok := ours[key]
		if !ok {
			differences = append(differences, key+" is unknown")
			continue
		}
		compared++
		if theirs["value"] != our.Value && !unsupported[key] && (theirs["value"] != theirs["default"] || changed[key] == "") && key != "unix_socket_mode" {
			differences = append(differences, fmt.Sprintf("%s is %q there and %q here", key, theirs["value"], our.Value))
		}
		if theirs["default"] != our.Default && changed[key] == "" {
			differences = append(differences, fmt.Sprintf("%s is %q by default there and %q here", key, theirs["default"], our.Default))
		}
		changeable := our.Changeable || strings.HasPrefix(key, "tcp_") // ours are those of the listener
		if (theirs["changeable"] == "yes") != changeable {
			differences = append(differences, key+" is changeable there or here")
		}
	}
	return compared, differences
}

// anyValue makes up values of settings of 1.18 that do not keep it from
// starting.
var anyValue = func() map[string]func(*rand.Rand) string {
	of := func(values ...string) func(*rand.Rand) string {
		return func(r *rand.Rand) string { return values[r.IntN(len(values))] }
	}
	number := of("1", "7", "0x1F", "010", "123456", " 5 ")
	seconds := of("0", "1", "1.5", "0.25", ".5", "3600", "86400", "1e2", "007")
	yes := of("0", "1")
	list := of("", "a", "a,b", "a,b,c_d")
	all := map[string]func(*rand.Rand) string{
		"pool_mode": of("session", "transaction", "Statement"), "server_check_query": of("select 2", "", "select 'it''s' -- ;"),
		"server_reset_query": of("", "DISCARD ALL", "DEALLOCATE ALL; -- x"), "admin_users": list, "stats_users": list,
		"ignore_startup_parameters": of("extra_float_digits", "extra_float_digits,options"), "verbose": of("0", "1"),
		"syslog_facility": of("auth", "daemon", "local3"), "syslog_ident": of("x", "a b"), "server_tls_protocols": of("secure", "all", "tlsv1.2"),
		"auth_query": of("select 1, 2"), "auth_user": of("", "bob"), "max_client_conn": of("50", "0x40", "0100"),
		"query_timeout": of("0", "600", "99.5"), "query_wait_timeout": of("0", "600", "99.5"), "server_connect_timeout": of("15", "30.5"),
	}
	for _, key := range []string{
		"client_idle_timeout", "client_login_timeout", "idle_transaction_timeout", "reserve_pool_timeout", "server_check_delay",
		"server_idle_timeout", "server_lifetime", "server_login_retry", "suspend_timeout",
	} {
		all[key] = seconds
	}
	for _, key := range []string{"client_idle_timeout", "client_login_timeout", "idle_transaction_timeout"} {
		all[key] = of("0", "30", "99.5")
	}
	for _, key := range []string{"min_pool_size", "reserve_pool_size", "max_db_connections", "max_user_connections", "listen_backlog", "stats_period"} {
		all[key] = number
	}
	for _, key := range []string{"server_reset_query_always", "server_round_robin", "log_stats"} {
		all[key] = yes
	}
	return all
}()

// What Debian's PgBouncer makes of a file is what we make of it.
func TestINIIsReadAsPgBouncerDoes(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	for round := range 4 {
		seed := uint64(round)
		r := rand.New(rand.NewPCG(seed, 7))
		settings := map[string]string{}
		for _, key := range slices.Sorted(maps.Keys(anyValue)) {
			if round > 0 && r.IntN(3) > 0 { // the first is the defaults
				settings[key] = anyValue[key](r)
			}
		}
		b, err := h.PgBouncer(t.Context(), "bouncer"+strconv.Itoa(round), localserver.PgBouncerConfig{Of: p, Settings: settings})
		require.NoError(t, err, "seed %d: %v", seed, settings)
		f := readOf(t, b)
		compared, differences := differ(t, b, &f)
		require.Empty(t, differences, "seed %d: %v", seed, settings)
		require.Greater(t, compared, 70)

		// It would notice.
		f.Config.PoolSize++
		_, differences = differ(t, b, &f)
		require.Len(t, differences, 1)
		require.NoError(t, b.Stop(t.Context()))
	}
}

// readOf reads the file that a PgBouncer has read.
func readOf(t *testing.T, b *localserver.PgBouncer) pgbounce.File {
	t.Helper()
	for _, line := range show(t, b, "config") {
		if line["key"] == "conffile" {
			f, err := pgbounce.ReadINI(line["value"])
			require.NoError(t, err)
			return f
		}
	}
	require.FailNow(t, "no conffile")
	return pgbounce.File{}
}

func TestINIDatabasesAreReadAsPgBouncerDoes(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // the PgBouncer is another user
	included := filepath.Join(dir, "included.ini")
	require.NoError(t, os.WriteFile(included, []byte("[databases]\nincluded = host=i port=1\n"), 0o644))

	// The last line of the file is that of verbose.
	b, err := h.PgBouncer(t.Context(), "bouncer", localserver.PgBouncerConfig{Of: p, Settings: map[string]string{"verbose": `0
  # a comment
	; another
[databases] same.line-x = host=s port = 0017
a = host = h1,h2   port= 5433 dbname=other user=u password='p''q' pool_size=7 min_pool_size=2 reserve_pool=3 max_db_connections=9 pool_mode=Transaction
a = host=h3 user=v dbname='with space' connect_query='select ''x'', 1' application_name=x client_encoding=UTF8 datestyle='ISO' timezone='UTC'
b = host=/tmp
%include ` + included + `
after = host=x dbname=y#;z
[users]
bob = pool_mode=session max_user_connections=3`}})
	require.NoError(t, err)
	f := readOf(t, b)
	seen := 0
	for _, theirs := range show(t, b, "databases") {
		name := theirs["name"]
		if name == "pgbouncer" || name == "postgres" { // the console, and one that came by "*"
			continue
		}
		seen++
		ours, ok := f.Config.Databases[name]
		require.True(t, ok, name)
		size := cmp.Or(ours.PoolSize, f.Config.PoolSize)
		require.Equal(t, map[string]string{
			"host": strings.Join(ours.Hosts, ","), "port": strconv.Itoa(ours.Port), "database": cmp.Or(ours.Name, name), "force_user": ours.User,
			"pool_size": strconv.Itoa(size), "min_pool_size": strconv.Itoa(ours.MinPoolSize), "reserve_pool": strconv.Itoa(ours.ReservePoolSize),
			"max_connections": strconv.Itoa(ours.MaxServers), "pool_mode": ours.Mode.String(),
		}, pick(theirs, "host", "port", "database", "force_user", "pool_size", "min_pool_size", "reserve_pool", "max_connections", "pool_mode"), name)
	}
	require.Equal(t, 5, seen)
	require.Equal(t, "with space", f.Config.Databases["a"].Name)
	require.Equal(t, "select 'x', 1", f.Config.Databases["a"].ConnectQuery)
}

func pick(from map[string]string, keys ...string) map[string]string {
	picked := map[string]string{}
	for _, k := range keys {
		picked[k] = from[k]
	}
	return picked
}
