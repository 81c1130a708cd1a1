package pgbounce_test

import (
	"cmp"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// parseINI reads files from memory, of which the first is a.ini.
func parseINI(text string, others ...string) (pgbounce.File, error) {
	files := map[string]string{"a.ini": text}
	for i := 0; i < len(others); i += 2 {
		files[others[i]] = others[i+1]
	}
	return pgbounce.ParseINI("a.ini", func(path string) ([]byte, error) {
		text, ok := files[path]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return []byte(text), nil
	})
}

func mustParseINI(t *testing.T, text string, others ...string) pgbounce.File {
	t.Helper()
	f, err := parseINI(text, others...)
	require.NoError(t, err)
	return f
}

func TestINIDefaultsArePgBouncers(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, "[pgbouncer]")
	require.Equal(t, "a.ini", f.Path)
	require.Empty(t, f.ListenAddrs)
	require.Equal(t, 6432, f.Port)
	require.Equal(t, "/tmp", f.UnixDir)
	require.Equal(t, fs.FileMode(0o777), f.UnixMode)
	require.Equal(t, 128, f.Backlog)
	require.True(t, f.LogStats)
	require.Equal(t, time.Minute, f.StatsPeriod)
	require.Equal(t, "daemon", f.SyslogFacility)
	require.True(t, f.KeepAlive.Enable)
	require.Negative(t, f.KeepAlive.Idle, "0 would be Go's default, not the system's")
	require.Negative(t, f.KeepAlive.Count)
	require.Empty(t, f.Warnings)

	c := f.Config
	require.Empty(t, c.Databases)
	require.NotNil(t, c.Databases, "nil would be the database *")
	require.Equal(t, pgbounce.Session, c.Mode)
	require.Equal(t, 100, c.MaxClients)
	require.Equal(t, 20, c.PoolSize)
	require.Equal(t, 200, c.MaxPreparedStatements)
	require.Equal(t, "md5", c.Auth.Type)
	require.Contains(t, c.Auth.Query, "pg_catalog.pg_authid")
	require.Equal(t, "DISCARD ALL", c.ServerResetQuery)
	require.Equal(t, pgbounce.TLSDisable, c.ClientTLS.Mode)
	require.Equal(t, pgbounce.TLSPrefer, c.ServerTLS.Mode)
	require.Equal(t, []string{"IntervalStyle"}, c.TrackParameters)
	for name, d := range map[string]time.Duration{
		"QueryWaitTimeout": c.QueryWaitTimeout, "ClientLoginTimeout": c.ClientLoginTimeout,
		"ServerLifetime": c.ServerLifetime, "ServerIdleTimeout": c.ServerIdleTimeout,
		"QueryWaitNotify": c.QueryWaitNotify, "RecoverTimeout": c.RecoverTimeout,
	} {
		require.Positive(t, d, name)
	}
	require.Equal(t, 120*time.Second, c.QueryWaitTimeout)
	require.Equal(t, time.Hour, c.ServerLifetime)
	// A 0 would be Config's default one day, and a negative one never is.
	require.Negative(t, c.QueryTimeout)
	require.Negative(t, c.TransactionTimeout)
	require.Negative(t, c.IdleTransactionTimeout)
	require.Negative(t, c.ClientIdleTimeout)
	_, err := pgbounce.New(c)
	require.NoError(t, err)
}

func TestINIOfAllSections(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, `
; a comment
# another
[databases]
app =
photos = host=10.0.0.1,10.0.0.2 port=5433 dbname=p user=u password='it''s; #1 =' pool_size=7 min_pool_size=0 reserve_pool=3 max_db_connections=0
other = host=/run/pg connect_query='select 1' pool_mode=Statement max_db_client_connections=9 server_lifetime=60 pool_size=-1 application_name=x timezone = UTC
other.x-* = host=h datestyle=ISO client_encoding='UTF8' auth_user=a auth_query='select $1' auth_dbname=d reserve_pool_size=2
'a b''c' = host=h
"d ""e" = host=h
* = host=::1
photos.old = host=x
photos.old = host=y
[users]
bob = pool_mode=transaction max_user_connections=4 max_user_client_connections=8 query_timeout=5 client_idle_timeout=6 transaction_timeout=7 idle_transaction_timeout=0 pool_size=3 reserve_pool_size=1
[peers]
1 = host=/tmp/one
2 = host=b port=7000
[pgbouncer]
listen_addr = 127.0.0.1, localhost ,::1
listen_port=7432
unix_socket_dir = /run/x
unix_socket_mode = 0750
unix_socket_group = staff
max_client_conn = 0x20
pool_mode = TRANSACTION
query_timeout = 1.5
server_check_query =
server_reset_query =
server_lifetime = 0
max_prepared_statements = 0
admin_users = a,b, c
stats_users=d
ignore_startup_parameters = extra_float_digits, options
log_connections = 0
log_disconnections = 0
so_reuseport = 1
peer_id = 2
tcp_keepidle = 30
tcp_keepcnt = 4
tcp_user_timeout = 1500
user = nobody
client_tls_protocols = tlsv1.3
[pgbounce]
pins = refuse
recover_timeout = 0
loops = 3
metrics_addr = :9127
shard_catalog = postgres://u:p@h/catalog
`)
	require.Empty(t, f.Warnings)
	require.Equal(t, map[string]pgbounce.Database{
		"app": {Hosts: []string{"/run/x"}, Port: 5432},
		"photos": {
			Hosts: []string{"10.0.0.1", "10.0.0.2"}, Port: 5433, Name: "p", User: "u", Password: "it's; #1 =",
			PoolSize: 7, MinPoolSize: -1, ReservePoolSize: 3, MaxServers: -1,
		},
		"other": {
			Hosts: []string{"/run/pg"}, Port: 5432, ConnectQuery: "select 1", Mode: pgbounce.Statement, MaxClients: 9,
			ServerLifetime: time.Minute, Parameters: map[string]string{"application_name": "x", "timezone": "UTC"},
		},
		"other.x-*": {
			Hosts: []string{"h"}, Port: 5432, AuthUser: "a", AuthQuery: "select $1", AuthDatabase: "d", ReservePoolSize: 2,
			Parameters: map[string]string{"datestyle": "ISO", "client_encoding": "UTF8"},
		},
		"a b'c":      {Hosts: []string{"h"}, Port: 5432},
		`d "e`:       {Hosts: []string{"h"}, Port: 5432},
		"*":          {Hosts: []string{"::1"}, Port: 5432},
		"photos.old": {Hosts: []string{"y"}, Port: 5432},
	}, f.Config.Databases)
	require.Equal(t, map[string]pgbounce.User{"bob": {
		Mode: pgbounce.Transaction, MaxServers: 4, MaxClients: 8, QueryTimeout: 5 * time.Second, ClientIdleTimeout: 6 * time.Second,
		TransactionTimeout: 7 * time.Second, PoolSize: 3, ReservePoolSize: 1,
	}}, f.Config.Users)
	require.Equal(t, map[int]pgbounce.Peer{1: {Host: "/tmp/one", Port: 6432}, 2: {Host: "b", Port: 7000}}, f.Config.Peers)
	require.Equal(t, []string{"127.0.0.1", "localhost", "::1"}, f.ListenAddrs)
	require.Equal(t, 7432, f.Port)
	require.Equal(t, fs.FileMode(0o750), f.UnixMode)
	require.Equal(t, "staff", f.UnixGroup)
	require.Equal(t, 32, f.Config.MaxClients)
	require.Equal(t, pgbounce.Transaction, f.Config.Mode)
	require.Equal(t, 1500*time.Millisecond, f.Config.QueryTimeout)
	require.Negative(t, f.Config.ServerCheckDelay, "an empty query is never sent")
	require.Equal(t, ";", f.Config.ServerResetQuery, "an empty one would be the default")
	require.Equal(t, time.Nanosecond, f.Config.ServerLifetime, "a server is used once")
	require.Equal(t, -1, f.Config.MaxPreparedStatements)
	require.Equal(t, []string{"a", "b", "c"}, f.Config.Admins)
	require.Equal(t, []string{"d"}, f.Config.Watchers)
	require.Equal(t, []string{"extra_float_digits", "options"}, f.Config.IgnoreParameters)
	require.True(t, f.Config.QuietConnections)
	require.True(t, f.ReusePort)
	require.Equal(t, 2, f.Config.PeerID)
	require.Equal(t, 30*time.Second, f.KeepAlive.Idle)
	require.Equal(t, 4, f.KeepAlive.Count)
	require.Equal(t, 1500*time.Millisecond, f.UserTimeout)
	require.Equal(t, "nobody", f.User)
	require.Equal(t, pgbounce.PinRefuse, f.Config.Pins)
	require.Negative(t, f.Config.RecoverTimeout)
	require.Equal(t, 3, f.Config.Loops)
	require.Equal(t, ":9127", f.MetricsAddr)
	require.Equal(t, "postgres://u:p@h/catalog", f.ShardCatalog)
	_, err := pgbounce.New(f.Config)
	require.NoError(t, err)
}

func TestINISyntax(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		clients    int
		warnings   int
	}{
		{"LastWins", "[pgbouncer]\nmax_client_conn=5\nmax_client_conn=6", 6, 0},
		{"Spaces", " \t[pgbouncer]\n  max_client_conn \t=\t 5 \t\r\n", 5, 0},
		{"KeyBehindSection", "[pgbouncer] max_client_conn=5", 5, 0},
		{"SectionsBehindOneAnother", "[users][pgbouncer]max_client_conn=5", 5, 0},
		{"NoNewlineAtTheEnd", "[pgbouncer]\nmax_client_conn=5", 5, 0},
		{"CommentBehindSection", "[pgbouncer] ; comment\nmax_client_conn=5", 5, 0},
		{"Octal", "[pgbouncer]\nmax_client_conn=010", 8, 0},
		{"SecondSectionTakesBack", "[pgbouncer]\nmax_client_conn=5\n[users]\n[pgbouncer]\nlisten_port=7", 100, 1},
		{"QuotedKey", "[pgbouncer]\n'max_client_conn'=5", 5, 0},
		{"UnsupportedAtItsDefault", "[pgbouncer]\npkt_buf=4096\ndns_max_ttl=15.0\nmax_client_conn=5", 5, 0},
		{"Unsupported", "[pgbouncer]\npkt_buf=8192\nmax_client_conn=5", 5, 1},
		{"OpenSSLCiphers", "[pgbouncer]\nclient_tls_ciphers=HIGH:!aNULL\nmax_client_conn=5", 5, 1},
		{"GoCiphers", "[pgbouncer]\nclient_tls_ciphers=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\nmax_client_conn=5", 5, 0},
		{"UnsupportedParameter", "[databases]\na=host=x load_balance_hosts=disable target_session_attrs=read-write\n[pgbouncer]\nmax_client_conn=5", 5, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, err := parseINI(test.text)
			require.NoError(t, err)
			require.Equal(t, test.clients, f.Config.MaxClients)
			require.Len(t, f.Warnings, test.warnings, f.Warnings)
		})
	}
}

func TestINIErrorsNamePlaceAndKeyAndNoSecret(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, want string }{
		{"Empty", "", "a.ini: no section [pgbouncer]"},
		{"NoMainSection", "[databases]\n", "a.ini: no section [pgbouncer]"},
		{"UnknownKey", "[pgbouncer]\n\nmax_clients = s3cret\n", "a.ini:3: unknown key max_clients in [pgbouncer]"},
		{"UnknownSection", "[pgbouncers]", "a.ini:1: unknown section [pgbouncers]"},
		{"NoSection", "max_client_conn = 5", "a.ini:1: key max_client_conn is before the first section"},
		{"OpenSection", "[pgbouncer", "a.ini:1: a section without ]"},
		{"NoEquals", "[pgbouncer]\nmax_client_conn s3cret", "a.ini:2: want key = value"},
		{"NoKey", "[pgbouncer]\n= s3cret", "a.ini:2: want key = value"},
		{"OddKey", "[databases]\na b = host=x", "a.ini:2: want key = value"},
		{"OpenQuote", "[databases]\n'a = host=x", "a.ini:2: a key with no end to its quotes"},
		{"ZeroByte", "[pgbouncer]\nlogfile = a\x00b", "a.ini:2: a zero byte"},
		{"OwnKey", "[pgbouncer]\npins = warn", "a.ini:2: key pins in [pgbouncer]: it belongs into the other section"},
		{"NotOwnKey", "[pgbounce]\nlogfile = s3cret", "a.ini:2: key logfile in [pgbounce]: it belongs into the other section"},
		{"Number", "[pgbouncer]\nmax_client_conn = s3cret", "a.ini:2: max_client_conn: want a whole number from 1 to 2147483647"},
		{"NumberOfGo", "[pgbouncer]\nmax_client_conn = 1_000", "a.ini:2: max_client_conn: want a whole number from 1"},
		{"NumberTooHigh", "[pgbouncer]\nmax_client_conn = 3000000000", "a.ini:2: max_client_conn: want a whole number from 1"},
		{"NegativeTime", "[pgbouncer]\nquery_timeout = -1", "a.ini:2: query_timeout: want a number of seconds"},
		{"NoTime", "[pgbouncer]\nquery_timeout = nan", "a.ini:2: query_timeout: want a number of seconds"},
		{"EndlessTime", "[pgbouncer]\nquery_timeout = inf", "a.ini:2: query_timeout: want a number of seconds"},
		{"TimeWithUnit", "[pgbouncer]\nquery_timeout = 5s", "a.ini:2: query_timeout: want a number of seconds"},
		{"Mode", "[pgbouncer]\npool_mode = s3cret", "a.ini:2: pool_mode: want session, transaction or statement"},
		{"AuthType", "[pgbouncer]\nauth_type = pam", "a.ini:2: auth_type: want one of any, trust,"},
		{"TLSMode", "[pgbouncer]\nclient_tls_sslmode = on", "a.ini:2: client_tls_sslmode: want one of disable, allow,"},
		{"TLSProtocols", "[pgbouncer]\nclient_tls_protocols = tlsv1.1,tlsv1.3", "a.ini:2: client_tls_protocols: want versions without"},
		{"Port", "[pgbouncer]\nlisten_port = 65536", "a.ini:2: listen_port: want a whole number from 1 to 65535"},
		{"SocketMode", "[pgbouncer]\nunix_socket_mode = 999", "a.ini:2: unix_socket_mode: want 0 to 0777"},
		{"PeerID", "[pgbouncer]\npeer_id = 16384", "a.ini:2: peer_id: want a whole number from 0 to 16383"},
		{"Pins", "[pgbounce]\npins = no", "a.ini:2: pins: want one of warn, server, refuse, ignore"},
		{"MetricsAddr", "[pgbounce]\nmetrics_addr = 9127", "a.ini:2: metrics_addr: want host:port"},
		{"ReservedName", "[databases]\npgbouncer = host=x", "a.ini:2: database pgbouncer is the console"},
		{"UnknownParameter", "[databases]\na = host=x hots=s3cret", "a.ini:2: database a: unknown parameter hots"},
		{"PasswordWithSpace", "[databases]\na = password=my s3cret=x", "a.ini:2: database a: unknown parameter after the password"},
		{"PasswordInPieces", "[databases]\na = password=my s3cret", "a.ini:2: database a: want key=value pairs"},
		{"OpenPassword", "[databases]\na = password='my s3cret", "a.ini:2: database a: password: no end to its quotes"},
		{"BehindPassword", "[databases]\na = password='x's3cret=y", "a.ini:2: database a: password: want a space behind the quotes"},
		{"EmptyValue", "[databases]\na = host= ", "a.ini:2: database a: host: no value"},
		{"EmptyQuotedValue", "[databases]\na = host=''", "a.ini:2: database a: host: no value"},
		{"HostList", "[databases]\na = host=x,,y", "a.ini:2: database a: host: an empty name"},
		{"DatabasePort", "[databases]\na = host=x port=s3cret", "a.ini:2: database a: port: want a whole number"},
		{"PoolSize", "[databases]\na = host=x pool_size=0", "a.ini:2: database a: pool_size: want a whole number from 1 on"},
		{"Lifetime", "[databases]\na = host=x server_lifetime=1.5", "a.ini:2: database a: server_lifetime: want a whole number"},
		{"NoHost", "[databases]\na =\n[pgbouncer]\nunix_socket_dir=", "a.ini: database a has no host, and unix_socket_dir is empty"},
		{"UserParameter", "[users]\na = password=s3cret", "a.ini:2: user a: unknown parameter password"},
		{"Peer", "[peers]\n0 = host=x", "a.ini:2: peer 0: want a whole number from 1 to 16383"},
		{"PeerHost", "[peers]\n1 = port=7", "a.ini:2: peer 1: want a host"},
		{"Include", "[pgbouncer]\n%include b.ini", "a.ini:2: b.ini:1: unknown section [x]"},
		{"IncludeMissing", "[pgbouncer]\n%include c.ini", "a.ini:2: open c.ini: file does not exist"},
		{"IncludeItself", "%include a.ini", "a.ini:1: a.ini:1: "},
		{"IncludeWithoutName", "[pgbouncer]\n%include", "a.ini:2: want key = value"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := parseINI(test.text, "b.ini", "[x]")
			require.ErrorContains(t, err, test.want)
			require.True(t, strings.HasPrefix(err.Error(), test.want), err)
			require.NotContains(t, err.Error(), "s3cret")
		})
	}
	_, err := pgbounce.ReadINI("missing.ini")
	require.EqualError(t, err, "pgbounce: read ini: open missing.ini: no such file or directory")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestINIWarningsNamePlaceAndKeyAndNoSecret(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, "[databases]\na = password=s3cret host=x query_wait_timeout=17\n%include b.ini\n[pgbouncer]",
		"b.ini", "[pgbouncer]\n\nauth_ldap_options = s3cret\nclient_tls_ecdhcurve = s3cret\n")
	require.Equal(t, []string{
		"a.ini:2: database a: query_wait_timeout has no effect: that of [pgbouncer] is for all databases",
		"b.ini:3: auth_ldap_options has no effect: there is no LDAP",
		"b.ini:4: client_tls_ecdhcurve: Go has no such curve, so its own choice stays",
		"a.ini:4: [pgbouncer] comes again, which makes all of its keys above void, as in PgBouncer",
	}, f.Warnings)
}

func TestINIIncludes(t *testing.T) {
	t.Parallel()
	// A section goes on in an included file, and that of the file goes on behind.
	f := mustParseINI(t, "[pgbouncer]\n%include b.ini\nc = host=x\n%include\tsub/c.ini  ",
		"b.ini", "max_client_conn = 5\n[databases]\nb = host=x", "sub/c.ini", "[pgbounce]\nloops=2")
	require.Equal(t, 5, f.Config.MaxClients)
	require.Contains(t, f.Config.Databases, "b")
	require.Contains(t, f.Config.Databases, "c")
	require.Equal(t, 2, f.Config.Loops)

	_, err := parseINI("%include b.ini", "b.ini", strings.Repeat("%include c.ini\n", 2000), "c.ini", "")
	require.ErrorContains(t, err, "a.ini:1: b.ini:1000: %include goes too deep")
	_, err = parseINI("%include a.ini")
	require.ErrorContains(t, err, strings.Repeat("a.ini:1: ", 11)+"%include goes too deep")
}

func TestINIOfDebian(t *testing.T) {
	t.Parallel()
	found := 0
	for _, path := range []string{"/etc/pgbouncer/pgbouncer.ini", "/usr/share/doc/pgbouncer/examples/pgbouncer.ini"} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		found++
		f := mustParseINI(t, string(text))
		require.Empty(t, f.Warnings)
		require.Equal(t, "/var/run/postgresql", f.UnixDir)
		require.Equal(t, []string{"localhost"}, f.ListenAddrs)

		// With all that is commented out it is a tour of the keys of 1.18.
		var all strings.Builder
		for line := range strings.Lines(string(text)) {
			_, placeholder, _ := strings.Cut(line, "=")
			example := strings.HasPrefix(line, ";") && !strings.HasPrefix(line, ";;") &&
				strings.Contains(line, "=") && !strings.Contains(placeholder, "<") && !strings.HasPrefix(line, "; ")
			all.WriteString(cmp.Or(map[bool]string{true: line[1:]}[example], line))
		}
		f = mustParseINI(t, all.String())
		require.Equal(t, "testserver", f.Config.Databases["*"].Hosts[0])
		require.Equal(t, "select 1", f.Config.ServerCheckQuery)
		require.Equal(t, []string{"user2", "someadmin", "otheradmin"}, f.Config.Admins)
		require.Equal(t, 10, f.Config.Users["user1"].MaxServers)
		require.Greater(t, len(f.Config.Databases), 4)
		for _, w := range f.Warnings {
			require.Contains(t, w, "resolv_conf has no effect")
		}
	}
	if found == 0 {
		t.Skip("Debian's package pgbouncer is not installed")
	}
}

func TestINIOfTheExample(t *testing.T) {
	t.Chdir("..") // where its relative names lead from
	f, err := pgbounce.ReadINI("pgbounce/testdata/pgbouncer.ini")
	require.NoError(t, err)
	require.Empty(t, f.Warnings)
	require.Equal(t, "scram-sha-256", f.Config.Auth.Type)
	require.Contains(t, f.Config.Auth.Secrets, "app")
	require.Equal(t, pgbounce.Transaction, f.Config.Mode)
	_, err = pgbounce.New(f.Config)
	require.NoError(t, err)
}

func TestINIReadsUsersAndRules(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	users := write("users", `"bob" "s3cret"`+"\n")
	broken := write("broken", "\"bob\" \"s3cret\"\nbob s3cret\n")
	rules := write("rules", "host all all 127.0.0.1/32 scram-sha-256\n")
	missing := filepath.Join(dir, "missing")

	read := func(lines ...string) (pgbounce.File, error) {
		return pgbounce.ReadINI(write("a.ini", "[pgbouncer]\n"+strings.Join(lines, "\n")))
	}
	idents := write("maps", "m root bob\n")
	f, err := read("auth_file = "+users, "auth_type = hba", "auth_hba_file = "+rules, "auth_ident_file = "+idents)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"bob": "s3cret"}, f.Config.Auth.Secrets)
	require.NotNil(t, f.Config.Auth.HBA)

	_, err = read("auth_file = " + missing)
	require.ErrorContains(t, err, "auth_file: open "+missing)
	_, err = read("auth_file = " + broken)
	require.ErrorContains(t, err, "auth_file: "+broken+": ")
	require.NotContains(t, err.Error(), "s3cret")
	_, err = read("auth_type = hba")
	require.ErrorContains(t, err, "auth_type is hba: want auth_hba_file")
	_, err = read("auth_type = hba", "auth_hba_file = "+missing)
	require.ErrorContains(t, err, "auth_hba_file: ")
	require.ErrorContains(t, err, missing)
	_, err = read("auth_type = hba", "auth_hba_file = "+rules, "auth_ident_file = "+missing)
	require.ErrorContains(t, err, "auth_ident_file: ")
	// As in PgBouncer, who asks for no name needs no users.
	_, err = read("auth_type = any", "auth_file = "+missing)
	require.NoError(t, err)
}

// A setting is a line of Settings.
type setting struct {
	Key, Value, Default string
	Changeable          bool
}

func listOf(f *pgbounce.File) []setting {
	var all []setting
	for _, s := range f.Settings() {
		all = append(all, setting{s[0], s[1], s[2], s[3] == "yes"})
	}
	return all
}

func settingsOf(f *pgbounce.File) map[string]setting {
	all := map[string]setting{}
	for _, s := range listOf(f) {
		all[s.Key] = s
	}
	return all
}

func TestSettings(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, "[pgbouncer]\nquery_timeout=1.25\nserver_reset_query=\nserver_check_query=\nserver_lifetime=0\n"+
		"log_connections=0\nlog_disconnections=0\nadmin_users=a, b\npkt_buf=8192\nunix_socket_mode=0700\n[pgbounce]\nshard_catalog=postgres://u:s3cret@h/d")
	got := settingsOf(&f)
	for key, want := range map[string]string{
		"query_timeout": "1.25", "server_reset_query": "", "server_check_query": "", "server_check_delay": "30",
		"server_lifetime": "0", "log_connections": "0", "admin_users": "a,b", "pkt_buf": "4096", "unix_socket_mode": "0700",
		"shard_catalog": "***", "conffile": "a.ini", "idle_transaction_timeout": "0", "pool_mode": "session", "pins": "warn",
	} {
		require.Equal(t, want, got[key].Value, key)
	}
	require.Equal(t, "0777", got["unix_socket_mode"].Default)
	require.False(t, got["listen_port"].Changeable)
	require.True(t, got["pool_mode"].Changeable)

	var keys []string
	for _, s := range listOf(&f) {
		if s.Key == "loops" {
			break // ours come last
		}
		keys = append(keys, s.Key)
	}
	require.True(t, slices.IsSorted(keys), keys)
	require.Len(t, slices.Compact(slices.Clone(keys)), len(keys))
}

// Each value that a setting shows can be given back to it, and each default is
// what it shows if nothing is said.
func TestSettingsRoundTrip(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, "[pgbouncer]")
	for _, s := range listOf(&f) {
		if s.Key == "conffile" {
			continue
		}
		require.Equal(t, s.Default, s.Value, s.Key)
		if err := f.Set(s.Key, s.Value); s.Changeable && (err == nil || !strings.Contains(err.Error(), "has no effect")) {
			require.NoError(t, err, s.Key)
			require.Equal(t, s, settingsOf(&f)[s.Key])
		}
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	f := mustParseINI(t, "[pgbouncer]")
	for key, value := range map[string]string{
		"max_client_conn": "7", "query_timeout": "0.5", "pool_mode": "transaction", "server_check_query": "select 1",
		"server_reset_query": "", "stats_users": "a,b", "client_idle_timeout": "0", "pins": "ignore", "verbose": "2",
		"server_lifetime": "0", "max_prepared_statements": "0", "log_connections": "1", "auth_type": "trust",
		"client_tls_protocols": "all", "syslog_facility": "local3", "conffile": "b.ini",
	} {
		require.NoError(t, f.Set(key, value), key)
		require.Equal(t, value, settingsOf(&f)[key].Value, key)
	}
	require.Equal(t, 7, f.Config.MaxClients)
	require.Equal(t, pgbounce.PinIgnore, f.Config.Pins)

	before := f
	for key, want := range map[string]string{
		"listen_port":        "set listen_port: it needs a restart",
		"pkt_buf":            "set pkt_buf: it has no effect: ",
		"nonsense":           "pgbounce: set: unknown key nonsense",
		"max_client_conn":    "max_client_conn: want a whole number",
		"auth_file":          "set auth_file: auth_file: open 1x: no such file",
		"client_tls_sslmode": "client_tls_sslmode: want one of",
		"client_tls_ciphers": "client_tls_ciphers: these names are not Go's",
	} {
		require.ErrorContains(t, f.Set(key, "1x"), want)
	}
	require.ErrorContains(t, f.Set("client_tls_sslmode", "require"), "want client_tls_cert_file and client_tls_key_file")
	require.Equal(t, before, f, "what fails changes nothing")
}

func TestKeep(t *testing.T) {
	t.Parallel()
	running := mustParseINI(t, "[pgbouncer]\nlisten_port=1\nlisten_addr=a,b\nunix_socket_mode=0700\npkt_buf=1\nmax_client_conn=1\n[pgbounce]\nshard_catalog=a")
	next := mustParseINI(t, "[pgbouncer]\nlisten_port=2\nlisten_addr=*\npkt_buf=2\nmax_client_conn=2\n[pgbounce]\nshard_catalog=b")
	require.Equal(t, []string{"listen_addr", "listen_port", "unix_socket_mode", "shard_catalog"}, next.Keep(&running))
	require.Equal(t, []string{"a", "b"}, next.ListenAddrs)
	require.Equal(t, 1, next.Port)
	require.Equal(t, fs.FileMode(0o700), next.UnixMode)
	require.Equal(t, "a", next.ShardCatalog)
	require.Equal(t, 2, next.Config.MaxClients)
	require.Empty(t, next.Keep(&running))
}

func FuzzINI(f *testing.F) {
	f.Add("[databases]\na = host=x password='it''s' port=1\n* =\n[users]\nb = pool_mode=session\n[peers]\n1=host=h\n[pgbouncer]\nmax_client_conn=5")
	f.Add("[pgbouncer]\n%include a.ini\n%include b.ini")
	f.Add("[pgbouncer]'a'=\n\"b\"\"\" = 1\n[x")
	f.Add("[pgbouncer]\nquery_timeout=1e300\ntcp_user_timeout=0x7fffffff\nclient_tls_protocols=all,!tlsv1.0\nunix_socket_mode=-1")
	for _, s := range func() []setting { f, _ := parseINI("[pgbouncer]"); return listOf(&f) }() {
		f.Add("[pgbouncer]\n" + s.Key + " = " + s.Default)
	}
	f.Fuzz(func(t *testing.T, text string) {
		file, err := parseINI(text, "b.ini", text)
		if err != nil {
			return
		}
		// What was read can be written and read again.
		var again strings.Builder
		again.WriteString("[pgbouncer]\n")
		own := false
		for _, s := range listOf(&file) {
			if s.Key == "loops" {
				own = true
				again.WriteString("[pgbounce]\n")
			}
			if s.Key != "shard_catalog" && s.Key != "conffile" {
				again.WriteString(s.Key + " = " + s.Value + "\n")
			}
		}
		require.True(t, own)
		again.WriteString("[databases]\n")
		for _, name := range slices.Sorted(maps.Keys(file.Config.Databases)) {
			again.WriteString(`"` + strings.ReplaceAll(name, `"`, `""`) + `" = host='` +
				strings.ReplaceAll(strings.Join(file.Config.Databases[name].Hosts, ","), "'", "''") + "'\n")
		}
		second, err := parseINI(again.String())
		require.NoError(t, err, again.String())
		first := settingsOf(&file)
		for key, s := range settingsOf(&second) {
			if key != "shard_catalog" {
				require.Equal(t, first[key], s)
			}
		}
		require.Equal(t, slices.Sorted(maps.Keys(file.Config.Databases)), slices.Sorted(maps.Keys(second.Config.Databases)))
	})
}

// A password never comes back in an error or a warning, whatever stands before
// and behind it.
func FuzzConninfo(f *testing.F) {
	f.Add("host=x", "port=1")
	f.Add("user", "=x y")
	f.Add("port='", "' x=y")
	f.Add("connect_query=''''", "query_wait_timeout=1 'x'='y'")
	f.Fuzz(func(t *testing.T, before, behind string) {
		const secret = "Zq8xSecretZq8x"
		text := "[databases]\na = " + before + " password=" + secret + behind + "\n[pgbouncer]"
		if strings.ContainsAny(before+behind, "\n") || strings.Contains(before, "Zq") {
			return
		}
		file, err := parseINI(text)
		if err != nil {
			require.NotContains(t, err.Error(), secret)
		}
		require.NotContains(t, strings.Join(file.Warnings, "\n"), secret)
	})
}
