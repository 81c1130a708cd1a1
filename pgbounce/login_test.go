package pgbounce_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// An authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	a := &authority{key: key, cert: cert, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// certificate is for a host or a user.
func (a *authority) certificate(t *testing.T, name string, addrs ...net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: addrs, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// strict is a PostgreSQL that asks for passwords.
type strict struct {
	server *localserver.Postgres
	admin  *pgx.Conn
}

// newStrict starts one with a line of pg_hba.conf for all but the superuser.
func newStrict(t *testing.T, rule string) *strict {
	t.Helper()
	g := &strict{server: breakable(t, nil)}
	g.admin = adminOf(t, g.server.DSN("postgres"))
	path := one[string](t, g.admin, "show hba_file")
	lines := "host all postgres 127.0.0.1/32 trust\n" + rule + "\n"
	require.NoError(t, os.WriteFile(path, []byte(lines), 0o600))
	require.True(t, one[bool](t, g.admin, "select pg_reload_conf()"))
	eventually(t, "the rules are read", func() bool {
		return one[int](t, g.admin, "select count(*) from pg_hba_file_rules where error is null and auth_method = 'trust'") == 1
	})
	return g
}

func (g *strict) do(t *testing.T, sql string) {
	t.Helper()
	_, err := g.admin.Exec(t.Context(), sql)
	require.NoError(t, err)
}

// secret is what PostgreSQL keeps of a user's password.
func (g *strict) secret(t *testing.T, user string) string {
	t.Helper()
	return one[string](t, g.admin, "select rolpassword from pg_authid where rolname = $1", user)
}

func (g *strict) config(t *testing.T) pgbounce.Config {
	t.Helper()
	cfg := only(t, g.server.DSN("postgres"))
	cfg.ServerLoginRetry = 10 * time.Millisecond
	return cfg
}

// try logs in with pgx and asks who it is.
func (f *front) try(user, password, more string) (who string, err error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	host, port, err := net.SplitHostPort(f.tcp)
	if err != nil {
		return "", err
	}
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s database=db user=%s password='%s' sslmode=disable %s", host, port, user, password, more))
	if err != nil {
		return "", err
	}
	return who, f.with(ctx, cfg, &who)
}

func (f *front) with(ctx context.Context, cfg *pgx.ConnConfig, who *string) error {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.QueryRow(ctx, "select current_user").Scan(who)
}

func TestPasswords(t *testing.T) {
	t.Parallel()
	g := newStrict(t, "host all all 127.0.0.1/32 scram-sha-256")
	g.do(t, "create role ada login password 'lovelace'")
	g.do(t, "set password_encryption = 'md5'; create role bob login password 'builder'; reset password_encryption")
	verifier := g.secret(t, "ada")
	require.True(t, strings.HasPrefix(verifier, "SCRAM-SHA-256$"))
	plain := map[string]string{"ada": "lovelace"}
	tests := []struct {
		name string
		auth pgbounce.Auth
	}{
		{"Plain", pgbounce.Auth{Type: "plain", Secrets: plain}},
		{"PlainAgainstAVerifier", pgbounce.Auth{Type: "plain", Secrets: map[string]string{"ada": verifier}}},
		{"MD5", pgbounce.Auth{Type: "md5", Secrets: plain}},
		{"MD5WithAVerifier", pgbounce.Auth{Type: "md5", Secrets: map[string]string{"ada": verifier}}},
		{"SCRAM", pgbounce.Auth{Type: "scram-sha-256", Secrets: plain}},
		{"SCRAMPassedThrough", pgbounce.Auth{Type: "scram-sha-256", Secrets: map[string]string{"ada": verifier}}},
		{"Query", pgbounce.Auth{Type: "scram-sha-256", User: "postgres"}},
		{"QueryAndMD5", pgbounce.Auth{Type: "md5", User: "postgres"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := g.config(t)
			cfg.Auth = tt.auth
			f := newFront(t, cfg)
			who, err := f.try("ada", "lovelace", "")
			require.NoError(t, err)
			require.Equal(t, "ada", who)
			for _, user := range []string{"ada", "nobody"} {
				_, err = f.try(user, "wrong", "")
				require.ErrorContains(t, err, "password authentication failed")
				require.ErrorContains(t, err, "28P01")
			}
			_, err = f.try("ada", "", "")
			require.Error(t, err)
		})
	}
	t.Run("TrustNeedsThePasswordOfTheServer", func(t *testing.T) {
		t.Parallel()
		cfg := g.config(t)
		f := newFront(t, cfg)
		_, err := f.try("ada", "", "")
		require.ErrorContains(t, err, "server login")
		require.NotContains(t, err.Error(), "lovelace")
		cfg.Auth.Secrets = plain
		who, err := newFront(t, cfg).try("ada", "", "")
		require.NoError(t, err)
		require.Equal(t, "ada", who)
	})
	t.Run("WrongPasswordOfTheServer", func(t *testing.T) {
		t.Parallel()
		cfg := g.config(t)
		cfg.Auth = pgbounce.Auth{Type: "plain", Secrets: map[string]string{"ada": "byron"}}
		_, err := newFront(t, cfg).try("ada", "byron", "")
		require.ErrorContains(t, err, `password authentication failed for user "ada"`)
	})
	t.Run("ChangedPassword", func(t *testing.T) {
		g.do(t, "create role eve login password 'first'")
		cfg := g.config(t)
		cfg.Auth = pgbounce.Auth{Type: "scram-sha-256", User: "postgres"}
		f := newFront(t, cfg)
		_, err := f.try("eve", "first", "")
		require.NoError(t, err)
		g.do(t, "alter role eve password 'second'")
		_, err = f.try("eve", "first", "")
		require.ErrorContains(t, err, "28P01")
		require.NoError(t, f.Reconnect("db"))
		who, err := f.try("eve", "second", "")
		require.NoError(t, err)
		require.Equal(t, "eve", who)
	})
}

// What is asked of PostgreSQL about users is out of their reach.
func TestAuthQuery(t *testing.T) {
	t.Parallel()
	g := newStrict(t, "host all all 127.0.0.1/32 scram-sha-256")
	g.do(t, "create role ada login password 'lovelace'")
	g.do(t, "create role old login password 'lovelace' valid until '2001-01-01'")
	g.do(t, "create role group_only nologin password 'lovelace'")
	// A trap for a query that does not name its schemas.
	g.do(t, `create schema evil; grant usage on schema evil to public;
		create table evil.pg_authid as select rolname, null::timestamptz rolvaliduntil, 'known'::text rolpassword, true rolcanlogin from pg_catalog.pg_authid;
		create function evil.now() returns timestamptz language sql as $$select '1990-01-01'::timestamptz$$`)
	cfg := g.config(t)
	cfg.Auth = pgbounce.Auth{Type: "plain", User: "postgres"}
	cfg.IgnoreParameters = []string{"search_path"}
	cfg.TrackParameters = []string{"search_path"}
	f := newFront(t, cfg)
	who, err := f.try("ada", "lovelace", "")
	require.NoError(t, err)
	require.Equal(t, "ada", who)
	for _, user := range []string{"old", "group_only", "nobody", "postgres"} {
		_, err := f.try(user, "lovelace", "")
		require.ErrorContains(t, err, "28P01", user)
	}
	for _, path := range []string{"search_path=evil,pg_catalog", "options='-c search_path=evil,pg_catalog'"} {
		_, err = f.try("postgres", "known", path)
		require.ErrorContains(t, err, "28P01")
		_, err = f.try("old", "lovelace", path)
		require.ErrorContains(t, err, "28P01")
	}
	_, err = f.try(`"x' or true --"`, "known", "")
	require.Error(t, err)
}

// keepCert writes a certificate where PostgreSQL can read it.
func keepCert(t *testing.T, dir, name string, cert tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	require.NoError(t, err)
	write := func(file, kind string, der []byte) {
		path := filepath.Join(dir, file)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		info, err := os.Stat(dir)
		require.NoError(t, err)
		owner := info.Sys().(*syscall.Stat_t) // another user, where the tests run as root
		require.NoError(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	write(name+".crt", "CERTIFICATE", cert.Certificate[0])
	write(name+".key", "PRIVATE KEY", der)
}

func TestTLSOfClients(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	server := &tls.Config{
		Certificates: []tls.Certificate{ca.certificate(t, "localhost", net.IPv4(127, 0, 0, 1))},
		ClientCAs:    ca.pool,
	}
	pg := breakable(t, nil)
	config := func(mode pgbounce.TLSMode) pgbounce.Config {
		cfg := only(t, pg.DSN("postgres"))
		cfg.ClientTLS = pgbounce.TLS{Mode: mode, Config: server}
		return cfg
	}
	connect := func(f *front, user string, change func(*tls.Config)) error {
		host, port, _ := net.SplitHostPort(f.tcp)
		cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s database=db user=%s sslmode=verify-full", host, port, user))
		require.NoError(t, err)
		cfg.TLSConfig.RootCAs = ca.pool
		if change != nil {
			change(cfg.TLSConfig)
		}
		var who string
		return f.with(t.Context(), cfg, &who)
	}
	t.Run("Require", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, config(pgbounce.TLSRequire))
		require.NoError(t, connect(f, "postgres", nil))
		_, err := f.try("postgres", "", "")
		require.ErrorContains(t, err, "SSL required")
		require.Error(t, connect(f, "postgres", func(c *tls.Config) { c.RootCAs = other.pool }))
		// Large results, and cancels, go through as well.
		k := f.encrypted(t, ca)
		a := k.ask(t, query("select 'row', repeat('x', 100000) from generate_series(1, 100)"))
		require.Len(t, a.rows, 100)
	})
	t.Run("VerifyFull", func(t *testing.T) {
		t.Parallel()
		cfg := config(pgbounce.TLSVerifyFull)
		cfg.Auth = pgbounce.Auth{Type: "cert", Secrets: map[string]string{"postgres": ""}}
		f := newFront(t, cfg)
		mine, foreign := ca.certificate(t, "postgres"), other.certificate(t, "postgres")
		require.NoError(t, connect(f, "postgres", func(c *tls.Config) { c.Certificates = []tls.Certificate{mine} }))
		require.ErrorContains(t, connect(f, "somebody", func(c *tls.Config) { c.Certificates = []tls.Certificate{mine} }), "certificate")
		require.Error(t, connect(f, "postgres", func(c *tls.Config) { c.Certificates = []tls.Certificate{foreign} }))
		require.Error(t, connect(f, "postgres", nil))
	})
	t.Run("Direct", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, config(pgbounce.TLSPrefer))
		dial := func(protocols ...string) error {
			conn, err := tls.Dial("tcp", f.tcp, &tls.Config{RootCAs: ca.pool, ServerName: "localhost", NextProtos: protocols})
			if err != nil {
				return err
			}
			defer conn.Close()
			a, err := newTalk(conn).logIn("user", "postgres", "database", "db")
			if err == nil {
				require.Empty(t, a.codes)
			}
			return err
		}
		require.NoError(t, dial("postgresql"))
		require.Error(t, dial())
		require.Error(t, dial("http/1.1"))
	})
	t.Run("PlainTextBehindTheRequest", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, config(pgbounce.TLSPrefer))
		conn, err := f.dial(0)
		require.NoError(t, err)
		defer conn.Close()
		p := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103)
		_, err = conn.Write(append(p, startupPacket("user", "postgres", "database", "db")...))
		require.NoError(t, err)
		conn.SetDeadline(time.Now().Add(patience))
		all, _ := io.ReadAll(conn)
		require.NotContains(t, string(all), "server_version")
		require.Equal(t, byte('S'), all[0])
	})
	t.Run("Garbage", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, config(pgbounce.TLSPrefer))
		for _, garbage := range []string{"\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000), "\x16", "\x16\x03\x01\x00\x05hello", "\x16\x00\x00\x00\x00\x00"} {
			pour(t, f, 0, []byte(garbage))
			pour(t, f, 0, append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, 80877103), garbage...))
		}
		survives(t, f)
	})
	t.Run("Changed", func(t *testing.T) {
		f := newFront(t, config(pgbounce.TLSRequire))
		k := f.encrypted(t, ca)
		next := other.certificate(t, "localhost", net.IPv4(127, 0, 0, 1))
		cfg := config(pgbounce.TLSRequire)
		cfg.ClientTLS.Config = &tls.Config{Certificates: []tls.Certificate{next}}
		cfg.Log = f.logger
		require.NoError(t, f.Reload(cfg))
		require.Error(t, connect(f, "postgres", nil))
		require.NoError(t, connect(f, "postgres", func(c *tls.Config) { c.RootCAs = other.pool }))
		require.Equal(t, "1", k.get(t, "select 1"), "who is in stays")
	})
}

// encrypted logs in over TLS.
func (f *front) encrypted(t *testing.T, ca *authority) *talk {
	t.Helper()
	conn, err := f.dial(0)
	require.NoError(t, err)
	_, err = conn.Write(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, 80877103))
	require.NoError(t, err)
	var s [1]byte
	_, err = io.ReadFull(conn, s[:])
	require.NoError(t, err)
	require.Equal(t, "S", string(s[:]))
	secure := tls.Client(conn, &tls.Config{RootCAs: ca.pool, ServerName: "localhost"})
	t.Cleanup(func() { secure.Close() })
	k := newTalk(secure)
	a, err := k.logIn("user", "postgres", "database", "db")
	require.NoError(t, err)
	require.Empty(t, a.codes)
	return k
}

func TestTLSOfServers(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t), newAuthority(t)
	pg := breakable(t, nil)
	admin := adminOf(t, pg.DSN("postgres"))
	keepCert(t, one[string](t, admin, "show data_directory"), "server", ca.certificate(t, "localhost", net.IPv4(127, 0, 0, 1)))
	_, err := admin.Exec(t.Context(), "alter system set ssl = on")
	require.NoError(t, err)
	require.True(t, one[bool](t, admin, "select pg_reload_conf()"))
	eventually(t, "it speaks TLS", func() bool { return one[string](t, admin, "show ssl") == "on" })
	const encrypted = "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()"
	tests := []struct {
		name  string
		mode  pgbounce.TLSMode
		roots *x509.CertPool
		host  string
		want  string
	}{
		{"Disable", pgbounce.TLSDisable, nil, "127.0.0.1", "false"},
		{"Prefer", pgbounce.TLSPrefer, nil, "127.0.0.1", "true"},
		{"Require", pgbounce.TLSRequire, other.pool, "127.0.0.1", "true"},
		{"VerifyCA", pgbounce.TLSVerifyCA, ca.pool, "127.0.0.1", "true"},
		{"VerifyCAOfAnother", pgbounce.TLSVerifyCA, other.pool, "127.0.0.1", ""},
		{"VerifyFull", pgbounce.TLSVerifyFull, ca.pool, "localhost", "true"},
		{"VerifyFullOfAnother", pgbounce.TLSVerifyFull, other.pool, "localhost", ""},
		{"VerifyFullByAnotherName", pgbounce.TLSVerifyFull, ca.pool, "127.0.0.2", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := only(t, pg.DSN("postgres"))
			db := cfg.Databases["db"]
			db.Hosts = []string{tt.host}
			cfg.Databases["db"] = db
			cfg.ServerTLS = pgbounce.TLS{Mode: tt.mode, Config: &tls.Config{RootCAs: tt.roots}}
			f := newFront(t, cfg)
			k, err := f.enter(0, "postgres", "db")
			if tt.want == "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			defer k.conn.Close()
			require.Equal(t, tt.want, k.get(t, encrypted))
			// Many records, of which the pooler sees the end, and a cancel.
			a := k.ask(t, query("select 'row', repeat('x', 100000) from generate_series(1, 100)"))
			require.Len(t, a.rows, 100)
			require.NoError(t, k.write(encode(query("select pg_sleep(60), '"+tt.name+"'"))))
			eventually(t, "it sleeps", func() bool {
				return one[bool](t, adminOf(t, pg.DSN("postgres")), "select exists (select from pg_stat_activity where wait_event = 'PgSleep' and query like $1)", "%'"+tt.name+"'%")
			})
			cancels(t, f, 0, k.key)
			a, err = k.answer(1)
			require.NoError(t, err)
			require.Equal(t, []string{"57014"}, a.codes)
		})
	}
}
