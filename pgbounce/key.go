package pgbounce

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An iniKey is a setting of [pgbouncer] or [pgbounce].
type iniKey struct {
	name   string
	def    string
	fixed  bool   // it takes effect at the next start
	own    bool   // it is of [pgbounce]
	secret bool   // it is not shown
	why    string // it has no effect, "" if it has
	note   string // what differs from PgBouncer
	set    func(*File, string) error
	get    func(*File) string
	load   func(*File) error // reads the file it names, nil if it names none
}

// Settings returns all settings as SHOW CONFIG has them: key, value, default,
// and yes or no for whether Set can change it. Those of PgBouncer come by name,
// and ours behind them. One that has no effect shows its default, and a secret
// is not shown.
func (f *File) Settings() [][4]string {
	all := make([][4]string, len(iniKeys))
	for i, k := range iniKeys {
		changeable := "yes"
		if k.fixed {
			changeable = "no"
		}
		value := k.get(f)
		if k.secret && value != "" {
			value = "***"
		}
		all[i] = [4]string{k.name, value, k.def, changeable}
	}
	return all
}

// Set changes a setting of the File as the file itself would, and reads the
// files that it names. An error changes nothing, and does not hold the value.
func (f *File) Set(key, value string) error {
	k := findKey(key)
	switch {
	case k == nil:
		return fmt.Errorf("pgbounce: set: unknown key %s", key)
	case k.why != "":
		return fmt.Errorf("pgbounce: set %s: it has no effect: %s", key, k.why)
	case k.fixed:
		return fmt.Errorf("pgbounce: set %s: it needs a restart", key)
	}
	changed := *f
	err := k.set(&changed, value)
	if err == nil && k.load != nil {
		err = k.load(&changed)
	}
	if err != nil {
		return fmt.Errorf("pgbounce: set %s: %w", key, err)
	}
	*f = changed
	return nil
}

func (k *iniKey) assign(f *File, value string) error {
	if err := k.set(f, value); err != nil {
		return fmt.Errorf("%s: %w", k.name, err)
	}
	return nil
}

// setDefaults sets all of [pgbouncer] or of [pgbounce].
func (f *File) setDefaults(own bool) {
	for _, k := range iniKeys {
		if k.own != own || k.why != "" || k.name == "conffile" {
			continue
		}
		if err := k.assign(f, k.def); err != nil {
			panic("bug: " + err.Error())
		}
	}
}

func findKey(name string) *iniKey {
	if i := slices.IndexFunc(iniKeys, func(k iniKey) bool { return k.name == name }); i >= 0 {
		return &iniKeys[i]
	}
	return nil
}

// What has no effect, and why.
const (
	noBuffers  = "buffers are not of a fixed size"
	noResolver = "names are resolved by Go, each time"
	noDH       = "Go has no DHE key exchange"
)

// iniKeys are all settings that PgBouncer has, in its order, and ours.
var iniKeys = slices.Concat(sortedKeys(
	[]iniKey{
		listKey("admin_users", func(f *File) *[]string { return &f.Config.Admins }),
		noKey("application_name_add_host", "0", "the server sees the client's own application_name"),
		textKey("auth_dbname", "", func(f *File) *string { return &f.Config.Auth.Database }),
		textKey("auth_file", "", func(f *File) *string { return &f.authFile }).
			loaded((*File).loadSecrets).noted("a file that is missing or broken is an error"),
		textKey("auth_hba_file", "", func(f *File) *string { return &f.hbaFile }).loaded((*File).loadHBA),
		textKey("auth_ident_file", "", func(f *File) *string { return &f.identFile }).loaded((*File).loadHBA),
		noKey("auth_ldap_options", "", "there is no LDAP"),
		textKey("auth_query", strings.ReplaceAll(defaultAuthQuery, "\n", " "), func(f *File) *string { return &f.Config.Auth.Query }).
			noted("the default names its schemas"),
		choiceKey("auth_type", "md5", []string{"any", "trust", "plain", "md5", "scram-sha-256", "cert", "hba"},
			func(f *File) *string { return &f.Config.Auth.Type }).
			loaded(func(f *File) error { return cmp.Or(f.loadSecrets(), f.loadHBA()) }).noted("`ldap` and `pam` are an error"),
		textKey("auth_user", "", func(f *File) *string { return &f.Config.Auth.User }),
		secondsKey("autodb_idle_timeout", "3600", func(f *File) *time.Duration { return &f.Config.AutoDatabaseTimeout }),
		secondsKey("cancel_wait_timeout", "10", func(f *File) *time.Duration { return &f.Config.CancelWaitTimeout }),
		secondsKey("client_idle_timeout", "0", func(f *File) *time.Duration { return &f.Config.ClientIdleTimeout }),
		secondsKey("client_login_timeout", "60", func(f *File) *time.Duration { return &f.Config.ClientLoginTimeout }),
		noKey("client_tls_dheparams", "auto", noDH),
		curveKey("client_tls_ecdhcurve", func(f *File) *tlsFiles { return &f.clientFiles }).loaded((*File).loadClientTLS),
		textKey("conffile", "", func(f *File) *string { return &f.Path }),
		numberKey("default_pool_size", "20", 1, func(f *File) *int { return &f.Config.PoolSize }),
		boolKey("disable_pqexec", "0", func(f *File) *bool { return &f.Config.DisablePQExec }).stays(),
		noKey("dns_max_ttl", "15", noResolver),
		noKey("dns_nxdomain_ttl", "15", noResolver),
		noKey("dns_zone_check_period", "0", noResolver),
		secondsKey("idle_transaction_timeout", "0", func(f *File) *time.Duration { return &f.Config.IdleTransactionTimeout }),
		listKey("ignore_startup_parameters", func(f *File) *[]string { return &f.Config.IgnoreParameters }),
		noKey("job_name", "pgbouncer", "it is for services of Windows").stays(),
		listKey("listen_addr", func(f *File) *[]string { return &f.ListenAddrs }).stays(),
		numberKey("listen_backlog", "128", 1, func(f *File) *int { return &f.Backlog }).stays(),
		portKey("listen_port", "6432", func(f *File) *int { return &f.Port }).stays(),
		logKey("log_connections", func(f *File) *bool { return &f.quietConnects }),
		logKey("log_disconnections", func(f *File) *bool { return &f.quietDisconnects }),
		notKey("log_pooler_errors", "1", func(f *File) *bool { return &f.Config.QuietErrors }).
			noted("they are in the line that tells why a client was disconnected, which is left out only if `log_disconnections` is 0 too"),
		boolKey("log_stats", "1", func(f *File) *bool { return &f.LogStats }),
		textKey("logfile", "", func(f *File) *string { return &f.LogFile }),
		noKey("login_notify_message", "", "there is no welcome"),
		numberKey("max_client_conn", "100", 1, func(f *File) *int { return &f.Config.MaxClients }),
		numberKey("max_db_client_connections", "0", 0, func(f *File) *int { return &f.Config.MaxDatabaseClients }),
		numberKey("max_db_connections", "0", 0, func(f *File) *int { return &f.Config.MaxDatabaseServers }),
		noKey("max_packet_size", "2147483647", "messages stream through and may be as long as PostgreSQL allows"),
		offKey("max_prepared_statements", "200", func(f *File) *int { return &f.Config.MaxPreparedStatements }),
		numberKey("max_user_client_connections", "0", 0, func(f *File) *int { return &f.Config.MaxUserClients }),
		numberKey("max_user_connections", "0", 0, func(f *File) *int { return &f.Config.MaxUserServers }),
		numberKey("min_pool_size", "0", 0, func(f *File) *int { return &f.Config.MinPoolSize }),
		peerIDKey("peer_id").stays(),
		textKey("pidfile", "", func(f *File) *string { return &f.PIDFile }).stays(),
		noKey("pkt_buf", "4096", noBuffers).stays(),
		noKey("pool_idle_timeout", "0", "a pool without servers costs next to nothing and is kept, with its counts"),
		modeKey("pool_mode", "session", func(f *File) *Mode { return &f.Config.Mode }),
		secondsKey("query_timeout", "0", func(f *File) *time.Duration { return &f.Config.QueryTimeout }),
		wholeSecondsKey("query_wait_notify", "5", func(f *File) *time.Duration { return &f.Config.QueryWaitNotify }),
		secondsKey("query_wait_timeout", "120", func(f *File) *time.Duration { return &f.Config.QueryWaitTimeout }),
		numberKey("reserve_pool_size", "0", 0, func(f *File) *int { return &f.Config.ReservePoolSize }),
		secondsKey("reserve_pool_timeout", "5", func(f *File) *time.Duration { return &f.Config.ReservePoolTimeout }),
		noKey("resolv_conf", "", noResolver).stays(),
		noKey("sbuf_loopcnt", "5", noBuffers),
		noKey("scram_iterations", "4096", "a plain password's secret has always 4096"),
		checkDelayKey("server_check_delay", "30"),
		checkQueryKey("server_check_query", "<empty>"),
		secondsKey("server_connect_timeout", "15", func(f *File) *time.Duration { return &f.Config.ServerConnectTimeout }),
		noKey("server_fast_close", "0", "a session keeps its server to the end"),
		secondsKey("server_idle_timeout", "600", func(f *File) *time.Duration { return &f.Config.ServerIdleTimeout }),
		lifetimeKey("server_lifetime", "3600", func(f *File) *time.Duration { return &f.Config.ServerLifetime }),
		secondsKey("server_login_retry", "15", func(f *File) *time.Duration { return &f.Config.ServerLoginRetry }),
		resetQueryKey("server_reset_query", "DISCARD ALL"),
		boolKey("server_reset_query_always", "0", func(f *File) *bool { return &f.Config.ServerResetAlways }),
		boolKey("server_round_robin", "0", func(f *File) *bool { return &f.Config.ServerRoundRobin }),
		noKey("service_name", "pgbouncer", "it is for services of Windows").stays(),
		boolKey("so_reuseport", "0", func(f *File) *bool { return &f.ReusePort }).stays(),
		wholeSecondsKey("stats_period", "60", func(f *File) *time.Duration { return &f.StatsPeriod }),
		listKey("stats_users", func(f *File) *[]string { return &f.Config.Watchers }),
		secondsKey("suspend_timeout", "10", func(f *File) *time.Duration { return &f.Config.SuspendTimeout }),
		boolKey("syslog", "0", func(f *File) *bool { return &f.Syslog }),
		choiceKey("syslog_facility", "daemon", []string{
			"auth", "authpriv", "daemon", "user",
			"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
		}, func(f *File) *string { return &f.SyslogFacility }),
		textKey("syslog_ident", "pgbouncer", func(f *File) *string { return &f.SyslogIdent }),
		numberKey("tcp_defer_accept", "1", 0, func(f *File) *int { return &f.DeferAccept }).stays().noted("on Linux"),
		boolKey("tcp_keepalive", "1", func(f *File) *bool { return &f.KeepAlive.Enable }).stays().noted("for clients"),
		offKey("tcp_keepcnt", "0", func(f *File) *int { return &f.KeepAlive.Count }).stays().noted("for clients"),
		wholeSecondsKey("tcp_keepidle", "0", func(f *File) *time.Duration { return &f.KeepAlive.Idle }).stays().noted("for clients"),
		wholeSecondsKey("tcp_keepintvl", "0", func(f *File) *time.Duration { return &f.KeepAlive.Interval }).stays().noted("for clients"),
		numberKey("tcp_socket_buffer", "0", 0, func(f *File) *int { return &f.SocketBuffer }).stays().noted("for clients"),
		millisecondsKey("tcp_user_timeout", "0", func(f *File) *time.Duration { return &f.UserTimeout }).stays().noted("for clients, on Linux"),
		listKey("track_extra_parameters", func(f *File) *[]string { return &f.Config.TrackParameters }).stays().
			defaults("IntervalStyle").noted("IntervalStyle is tracked in any case"),
		secondsKey("transaction_timeout", "0", func(f *File) *time.Duration { return &f.Config.TransactionTimeout }),
		textKey("unix_socket_dir", "/tmp", func(f *File) *string { return &f.UnixDir }).stays().
			noted("Debian's PgBouncer has `/var/run/postgresql`"),
		textKey("unix_socket_group", "", func(f *File) *string { return &f.UnixGroup }).stays(),
		modeBitsKey("unix_socket_mode", "0777", func(f *File) *fs.FileMode { return &f.UnixMode }).stays(),
		textKey("user", "", func(f *File) *string { return &f.User }).stays(),
		numberKey("verbose", "0", 0, func(f *File) *int { return &f.Verbose }),
	},
	tlsKeys("client", "disable", func(f *File) (*TLS, *tlsFiles) { return &f.Config.ClientTLS, &f.clientFiles }, (*File).loadClientTLS),
	tlsKeys("server", "prefer", func(f *File) (*TLS, *tlsFiles) { return &f.Config.ServerTLS, &f.serverFiles }, (*File).loadServerTLS),
), ownKeys(
	rangeKey("loops", "0", 0, 1024, func(f *File) *int { return &f.Config.Loops }).stays().
		noted("threads that forward, 0 for as many as there are cores"),
	textKey("metrics_addr", "", func(f *File) *string { return &f.MetricsAddr }).stays().
		checked(checkAddr).noted("where /metrics and /healthz are served by HTTP, to whoever asks, as host:port"),
	pinsKey("pins", "warn").noted("what becomes of SQL that outlives its transaction: `warn`, `server`, `refuse`, `ignore`"),
	secondsKey("recover_timeout", "5", func(f *File) *time.Duration { return &f.Config.RecoverTimeout }).
		noted("how long a server may take that lost its client in a query, 0 to close it at once"),
	textKey("shard_catalog", "", func(f *File) *string { return &f.ShardCatalog }).stays().
		hidden().noted("the DSN of the catalog of shards, whose nodes become databases of that name"),
))

func sortedKeys(lists ...[]iniKey) []iniKey {
	keys := slices.Concat(lists...)
	slices.SortFunc(keys, func(a, b iniKey) int { return strings.Compare(a.name, b.name) })
	return keys
}

func ownKeys(keys ...iniKey) []iniKey {
	for i := range keys {
		keys[i].own = true
	}
	return keys
}

func (k iniKey) stays() iniKey {
	k.fixed = true
	return k
}

func (k iniKey) noted(note string) iniKey {
	k.note = note
	return k
}

func (k iniKey) defaults(def string) iniKey {
	k.def = def
	return k
}

func (k iniKey) loaded(load func(*File) error) iniKey {
	k.load = load
	return k
}

func (k iniKey) hidden() iniKey {
	k.secret = true
	return k
}

func (k iniKey) checked(check func(string) error) iniKey {
	set := k.set
	k.set = func(f *File, value string) error {
		if err := check(value); err != nil {
			return err
		}
		return set(f, value)
	}
	return k
}

// noKey is one that has no effect.
func noKey(name, def, why string) iniKey {
	return iniKey{name: name, def: def, why: why, get: func(*File) string { return def }}
}

func textKey(name, def string, field func(*File) *string) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			*field(f) = value
			return nil
		},
		get: func(f *File) string { return *field(f) },
	}
}

// listKey is names with commas between them.
func listKey(name string, field func(*File) *[]string) iniKey {
	return iniKey{
		name: name,
		set: func(f *File, value string) error {
			var names []string
			for part := range strings.SplitSeq(value, ",") {
				if part = strings.TrimSpace(part); part != "" {
					names = append(names, part)
				}
			}
			*field(f) = names
			return nil
		},
		get: func(f *File) string { return strings.Join(*field(f), ",") },
	}
}

func choiceKey(name, def string, choices []string, field func(*File) *string) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			value = strings.ToLower(value)
			if !slices.Contains(choices, value) {
				return fmt.Errorf("want one of %s", strings.Join(choices, ", "))
			}
			*field(f) = value
			return nil
		},
		get: func(f *File) string { return cmp.Or(*field(f), def) },
	}
}

func numberKey(name, def string, low int, field func(*File) *int) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) (err error) {
			n, err := wholeNumber(value, low, maxNumber)
			if err == nil {
				*field(f) = n
			}
			return err
		},
		get: func(f *File) string { return strconv.Itoa(*field(f)) },
	}
}

func portKey(name, def string, field func(*File) *int) iniKey {
	return rangeKey(name, def, 1, math.MaxUint16, field)
}

func peerIDKey(name string) iniKey {
	return rangeKey(name, "0", 0, maxPeerID, func(f *File) *int { return &f.Config.PeerID })
}

func rangeKey(name, def string, low, high int, field func(*File) *int) iniKey {
	return numberKey(name, def, low, field).checked(func(value string) error {
		_, err := wholeNumber(value, low, high)
		return err
	})
}

// offKey is a number whose 0 is a negative one in the field, where 0 is the
// default.
func offKey(name, def string, field func(*File) *int) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			n, err := wholeNumber(value, 0, maxNumber)
			if err == nil {
				*field(f) = cmp.Or(n, -1)
			}
			return err
		},
		get: func(f *File) string { return strconv.Itoa(max(*field(f), 0)) },
	}
}

func boolKey(name, def string, field func(*File) *bool) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			n, err := wholeNumber(value, math.MinInt32, maxNumber)
			if err != nil {
				return errors.New("want 0 or 1")
			}
			*field(f) = n != 0
			return nil
		},
		get: func(f *File) string { return zeroOne(*field(f)) },
	}
}

// notKey is a bool that is the other way round in the field.
func notKey(name, def string, field func(*File) *bool) iniKey {
	k := boolKey(name, def, field)
	set := k.set
	k.set = func(f *File, value string) error {
		err := set(f, value)
		if err == nil {
			*field(f) = !*field(f)
		}
		return err
	}
	k.get = func(f *File) string { return zeroOne(!*field(f)) }
	return k
}

func zeroOne(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// logKey is one of two that are one in a Config.
func logKey(name string, quiet func(*File) *bool) iniKey {
	k := boolKey(name, "1", quiet)
	k.note = "nothing is left out unless both `log_connections` and `log_disconnections` are 0"
	set := k.set
	k.set = func(f *File, value string) error {
		if err := set(f, value); err != nil {
			return err
		}
		*quiet(f) = !*quiet(f)
		f.Config.QuietConnections = f.quietConnects && f.quietDisconnects
		return nil
	}
	k.get = func(f *File) string { return zeroOne(!*quiet(f) && !f.Config.QuietConnections) }
	return k
}

// secondsKey is a time whose 0, which is off, is negative in the field, where 0
// is the default.
func secondsKey(name, def string, field func(*File) *time.Duration) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			d, err := parseSeconds(value)
			if err == nil {
				*field(f) = cmp.Or(d, -1)
			}
			return err
		},
		get: func(f *File) string { return formatSeconds(*field(f)) },
	}
}

// wholeSecondsKey is one of the few times that PgBouncer has as a number.
func wholeSecondsKey(name, def string, field func(*File) *time.Duration) iniKey {
	k := secondsKey(name, def, field)
	k.set = func(f *File, value string) error {
		n, err := wholeNumber(value, 0, maxNumber)
		if err == nil {
			*field(f) = cmp.Or(time.Duration(n)*time.Second, -1)
		}
		return err
	}
	return k
}

// lifetimeKey's 0 is no "off": a server is then used once. In a Config that is
// the shortest lifetime there is.
func lifetimeKey(name, def string, field func(*File) *time.Duration) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			d, err := parseSeconds(value)
			if err == nil {
				*field(f) = cmp.Or(d, 1)
			}
			return err
		},
		get: func(f *File) string { return formatSeconds(*field(f)) },
	}
}

func parseSeconds(value string) (time.Duration, error) {
	s, err := strconv.ParseFloat(value, 64)
	if err != nil || s < 0 || s > math.MaxInt32 || math.IsNaN(s) || strings.ContainsAny(value, "_xX") {
		return 0, errors.New("want a number of seconds, from 0 on")
	}
	return time.Duration(math.Round(s*1e6)) * time.Microsecond, nil // PgBouncer counts microseconds
}

func formatSeconds(d time.Duration) string {
	return strconv.FormatFloat(max(d, 0).Truncate(time.Microsecond).Seconds(), 'f', -1, 64)
}

func millisecondsKey(name, def string, field func(*File) *time.Duration) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			n, err := wholeNumber(value, 0, maxNumber)
			if err == nil {
				*field(f) = time.Duration(n) * time.Millisecond
			}
			return err
		},
		get: func(f *File) string { return strconv.FormatInt(field(f).Milliseconds(), 10) },
	}
}

func modeKey(name, def string, field func(*File) *Mode) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			m, err := parseMode(value)
			if err == nil {
				*field(f) = m
			}
			return err
		},
		get: func(f *File) string { return field(f).String() },
	}
}

func modeBitsKey(name, def string, field func(*File) *fs.FileMode) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			n, err := wholeNumber(value, 0, 0o777)
			if err != nil {
				return errors.New("want 0 to 0777")
			}
			*field(f) = fs.FileMode(n)
			return nil
		},
		get: func(f *File) string { return fmt.Sprintf("%#04o", *field(f)) },
	}
}

// checkDelayKey's 0 is no "off": a server is then always tried. That no server
// is, PgBouncer says by an empty server_check_query, and a Config by a negative
// delay.
func checkDelayKey(name, def string) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			d, err := parseSeconds(value)
			if err == nil && f.Config.ServerCheckDelay >= 0 {
				f.Config.ServerCheckDelay = cmp.Or(d, 1)
			}
			return err
		},
		get: func(f *File) string {
			if f.Config.ServerCheckDelay <= 0 {
				return def
			}
			return formatSeconds(f.Config.ServerCheckDelay)
		},
	}
}

func checkQueryKey(name, def string) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			switch {
			case value == "":
				f.Config.ServerCheckDelay = -1
			case f.Config.ServerCheckDelay < 0:
				f.Config.ServerCheckDelay = 30 * time.Second
			}
			f.Config.ServerCheckQuery = value
			if value == def {
				f.Config.ServerCheckQuery = ""
			}
			return nil
		},
		get: func(f *File) string {
			if f.Config.ServerCheckDelay <= 0 {
				return ""
			}
			return cmp.Or(f.Config.ServerCheckQuery, def)
		},
	}
}

// noReset does nothing, where an empty ServerResetQuery is the default one.
const noReset = ";"

func resetQueryKey(name, def string) iniKey {
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			f.Config.ServerResetQuery = cmp.Or(value, noReset)
			return nil
		},
		get: func(f *File) string {
			if f.Config.ServerResetQuery == noReset {
				return ""
			}
			return f.Config.ServerResetQuery
		},
	}
}

func pinsKey(name, def string) iniKey {
	names := []string{PinWarn: "warn", PinServer: "server", PinRefuse: "refuse", PinIgnore: "ignore"}
	return iniKey{
		name: name, def: def,
		set: func(f *File, value string) error {
			i := slices.Index(names, strings.ToLower(value))
			if i < 0 {
				return fmt.Errorf("want one of %s", strings.Join(names, ", "))
			}
			f.Config.Pins = Pins(i)
			return nil
		},
		get: func(f *File) string { return names[f.Config.Pins] },
	}
}
