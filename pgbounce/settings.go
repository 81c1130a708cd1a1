package pgbounce

import (
	"cmp"
	"strconv"
	"strings"
	"time"
)

func (c *console) showConfig() {
	c.header("key value default changeable")
	cfg := c.b.config()
	if hook := cfg.Admin.Settings; hook != nil {
		for _, s := range hook() {
			c.row(s[0], s[1], s[2], s[3])
		}
		return
	}
	defaults, _ := Config{}.withDefaults()
	usual := defaults.settings()
	for i, s := range cfg.settings() {
		c.row(s[0], s[1], usual[i][1], "no")
	}
}

// settings returns what the Config itself says of PgBouncer's settings.
func (c *Config) settings() [][2]string {
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	bit := func(b bool) string { return strconv.Itoa(len(yes(b)) - 2) }
	return [][2]string{
		{"admin_users", strings.Join(c.Admins, ",")},
		{"auth_type", cmp.Or(c.Auth.Type, "trust")},
		{"cancel_wait_timeout", seconds(c.CancelWaitTimeout)},
		{"client_idle_timeout", seconds(c.ClientIdleTimeout)},
		{"client_login_timeout", seconds(c.ClientLoginTimeout)},
		{"client_tls_sslmode", c.ClientTLS.Mode.String()},
		{"default_pool_size", strconv.Itoa(c.PoolSize)},
		{"idle_transaction_timeout", seconds(c.IdleTransactionTimeout)},
		{"ignore_startup_parameters", strings.Join(c.IgnoreParameters, ",")},
		{"max_client_conn", strconv.Itoa(c.MaxClients)},
		{"max_db_client_connections", strconv.Itoa(c.MaxDatabaseClients)},
		{"max_db_connections", strconv.Itoa(c.MaxDatabaseServers)},
		{"max_prepared_statements", strconv.Itoa(max(c.MaxPreparedStatements, 0))},
		{"max_user_client_connections", strconv.Itoa(c.MaxUserClients)},
		{"max_user_connections", strconv.Itoa(c.MaxUserServers)},
		{"min_pool_size", strconv.Itoa(c.MinPoolSize)},
		{"peer_id", strconv.Itoa(c.PeerID)},
		{"pool_mode", c.Mode.String()},
		{"query_timeout", seconds(c.QueryTimeout)},
		{"query_wait_notify", seconds(c.QueryWaitNotify)},
		{"query_wait_timeout", seconds(c.QueryWaitTimeout)},
		{"reserve_pool_size", strconv.Itoa(c.ReservePoolSize)},
		{"reserve_pool_timeout", seconds(c.ReservePoolTimeout)},
		{"server_check_delay", seconds(c.ServerCheckDelay)},
		{"server_check_query", c.ServerCheckQuery},
		{"server_connect_timeout", seconds(c.ServerConnectTimeout)},
		{"server_idle_timeout", seconds(c.ServerIdleTimeout)},
		{"server_lifetime", seconds(c.ServerLifetime)},
		{"server_login_retry", seconds(c.ServerLoginRetry)},
		{"server_reset_query", c.ServerResetQuery},
		{"server_reset_query_always", bit(c.ServerResetAlways)},
		{"server_round_robin", bit(c.ServerRoundRobin)},
		{"server_tls_sslmode", c.ServerTLS.Mode.String()},
		{"stats_users", strings.Join(c.Watchers, ",")},
		{"suspend_timeout", seconds(c.SuspendTimeout)},
		{"track_extra_parameters", strings.Join(c.TrackParameters, ",")},
		{"transaction_timeout", seconds(c.TransactionTimeout)},
	}
}
