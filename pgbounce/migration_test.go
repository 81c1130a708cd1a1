package pgbounce_test

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

const migrationPage = "../docs/pgbounce-migration.md"

// keyTable is the table of a section on the page.
func keyTable(section string) string {
	var b strings.Builder
	b.WriteString("| key | default | supported | remarks |\n|---|---|---|---|\n")
	for _, k := range pgbounce.DocKeys() {
		if k.Section != section {
			continue
		}
		supported := "yes"
		if k.Why != "" {
			supported = "no"
		}
		var remarks []string
		if k.Fixed && k.Why == "" {
			remarks = append(remarks, "needs a restart")
		}
		if r := cmp.Or(k.Why, k.Note); r != "" {
			remarks = append(remarks, r)
		}
		def := k.Default
		if def != "" && strings.HasPrefix(section, "pgbounce") { // the others' are words
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Name, def, supported, strings.Join(remarks, "; "))
	}
	return b.String()
}

// With UPDATE_DOCS set, the tables are written anew.
func TestMigrationPageHasAllKeys(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(migrationPage)
	require.NoError(t, err)
	page := string(text)
	for _, section := range []string{"pgbouncer", "databases", "users", "peers", "pgbounce"} {
		before, rest, ok := strings.Cut(page, "### ["+section+"]\n\n")
		require.True(t, ok, section)
		i := strings.Index(rest, "| key |")
		require.NotEqual(t, -1, i, section)
		intro, rest := rest[:i], rest[i:]
		table, after, _ := strings.Cut(rest, "\n\n")
		want := strings.TrimSuffix(keyTable(section), "\n")
		if os.Getenv("UPDATE_DOCS") == "" {
			require.Equal(t, want, strings.TrimSuffix(table, "\n"), "run the test with UPDATE_DOCS=1 to write the tables")
		}
		page = before + "### [" + section + "]\n\n" + intro + want + "\n\n" + after
	}
	if page = strings.TrimRight(page, "\n") + "\n"; os.Getenv("UPDATE_DOCS") != "" {
		require.NoError(t, os.WriteFile(migrationPage, []byte(page), 0o644))
	}
}

// The keys of PgBouncer at the commit that the page names, as its manual lists
// them.
const manual = `admin_users application_name_add_host auth_dbname auth_file auth_hba_file auth_ident_file auth_ldap_options auth_query
auth_type auth_user autodb_idle_timeout cancel_wait_timeout client_idle_timeout client_login_timeout client_tls13_ciphers client_tls_ca_file
client_tls_cert_file client_tls_ciphers client_tls_dheparams client_tls_ecdhcurve client_tls_key_file client_tls_protocols client_tls_sslmode
conffile default_pool_size disable_pqexec dns_max_ttl dns_nxdomain_ttl dns_zone_check_period idle_transaction_timeout
ignore_startup_parameters job_name listen_addr listen_backlog listen_port log_connections log_disconnections log_pooler_errors log_stats
logfile login_notify_message max_client_conn max_db_client_connections max_db_connections max_packet_size max_prepared_statements
max_user_client_connections max_user_connections min_pool_size peer_id pidfile pkt_buf pool_idle_timeout pool_mode query_timeout
query_wait_notify query_wait_timeout reserve_pool_size reserve_pool_timeout resolv_conf sbuf_loopcnt scram_iterations server_check_delay
server_check_query server_connect_timeout server_fast_close server_idle_timeout server_lifetime server_login_retry server_reset_query
server_reset_query_always server_round_robin server_tls13_ciphers server_tls_ca_file server_tls_cert_file server_tls_ciphers
server_tls_key_file server_tls_protocols server_tls_sslmode service_name so_reuseport stats_period stats_users suspend_timeout syslog
syslog_facility syslog_ident tcp_defer_accept tcp_keepalive tcp_keepcnt tcp_keepidle tcp_keepintvl tcp_socket_buffer tcp_user_timeout
track_extra_parameters transaction_timeout unix_socket_dir unix_socket_group unix_socket_mode user verbose`

func TestAllKeysOfThePgBouncerManualAreKnown(t *testing.T) {
	t.Parallel()
	var ours []string
	for _, k := range pgbounce.DocKeys() {
		if k.Section == "pgbouncer" {
			ours = append(ours, k.Name)
		}
	}
	slices.Sort(ours)
	require.Equal(t, slices.Sorted(slices.Values(strings.Fields(manual))), ours)
}
