package pgbounce_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// selfSigned returns a certificate for 127.0.0.1 and its parts as PEM.
func selfSigned(t *testing.T) (cert tls.Certificate, certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	certPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	keyPEM = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	cert, err = tls.X509KeyPair([]byte(certPEM), []byte(keyPEM))
	require.NoError(t, err)
	return cert, certPEM, keyPEM
}

// serveLogin plays PostgreSQL for one login.
func serveLogin(conn net.Conn, secret *pgbounce.SCRAMSecret, cert *tls.Certificate) error {
	defer conn.Close()
	raw := conn
	var binding []byte
	if cert != nil {
		b := pgproto3.NewBackend(conn, conn)
		if _, err := b.ReceiveStartupMessage(); err != nil { // SSLRequest
			return err
		}
		if _, err := conn.Write([]byte("S")); err != nil {
			return err
		}
		conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*cert}})
		binding = pgbounce.EndPoint(cert.Leaf)
	}
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return err
	}
	s := pgbounce.NewSCRAMServer(secret, binding)
	b.Send(&pgproto3.AuthenticationSASL{AuthMechanisms: s.Mechanisms()})
	if err := errors.Join(b.Flush(), b.SetAuthType(pgproto3.AuthTypeSASL)); err != nil {
		return err
	}
	msg, err := b.Receive()
	if err != nil {
		return err
	}
	initial, ok := msg.(*pgproto3.SASLInitialResponse)
	if !ok {
		return fmt.Errorf("received %T", msg)
	}
	first, err := s.First(initial.AuthMechanism, initial.Data)
	if err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationSASLContinue{Data: first})
	if err := errors.Join(b.Flush(), b.SetAuthType(pgproto3.AuthTypeSASLContinue)); err != nil {
		return err
	}
	if msg, err = b.Receive(); err != nil {
		return err
	}
	response, ok := msg.(*pgproto3.SASLResponse)
	if !ok {
		return fmt.Errorf("received %T", msg)
	}
	final, _, err := s.Final(response.Data)
	if err != nil {
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
		return errors.Join(err, b.Flush())
	}
	b.Send(&pgproto3.AuthenticationSASLFinal{Data: final})
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := b.Flush(); err != nil {
		return err
	}
	if _, err := b.Receive(); err != nil { // Terminate
		return err
	}
	_, err = io.Copy(io.Discard, raw) // a Pipe keeps nothing: take the farewell of TLS
	return err
}

func TestSCRAMServerWithPgx(t *testing.T) {
	t.Parallel()
	cert, certPEM, _ := selfSigned(t)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(certPEM)))
	for _, test := range []struct {
		name, password string
		binding        string // pgx's channel_binding; no TLS if empty
		want           error
	}{
		{"WithoutTLS", "hunter2", "", nil},
		{"Bound", "hunter2", "require", nil},
		{"NotBound", "hunter2", "disable", nil},
		{"WrongPassword", "hunter3", "", pgbounce.ErrSCRAMProof},
		{"WrongPasswordBound", "hunter3", "require", pgbounce.ErrSCRAMProof},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			client, server := net.Pipe()
			served := make(chan error, 1)
			withTLS := &cert
			cfg, err := pgconn.ParseConfig("postgres://alice:" + test.password + "@127.0.0.1/db?sslmode=disable")
			require.NoError(t, err)
			if test.binding == "" {
				withTLS = nil
			} else {
				cfg.ChannelBinding = test.binding
				cfg.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
			}
			cfg.DialFunc = func(context.Context, string, string) (net.Conn, error) { return client, nil }
			secret := pgbounce.NewSCRAMSecret("hunter2", 4096)
			go func() { served <- serveLogin(server, secret, withTLS) }()
			conn, err := pgconn.ConnectConfig(t.Context(), cfg)
			if test.want != nil {
				require.Error(t, err)
				require.ErrorIs(t, <-served, test.want)
				return
			}
			require.NoError(t, err)
			require.NoError(t, conn.Close(t.Context()))
			require.NoError(t, <-served)
		})
	}
}

// A guarded is a PostgreSQL that asks all but its superuser for passwords.
type guarded struct {
	*localserver.Postgres
	admin *pgx.Conn
	cert  tls.Certificate
}

const guardedHBA = `host all postgres 127.0.0.1/32 trust
host all md5 127.0.0.1/32 md5
host all all 127.0.0.1/32 scram-sha-256
`

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	server, err := testserver.Host(t).Postgres(t.Context(), "guarded", localserver.PostgresConfig{})
	require.NoError(t, err)
	admin, err := pgx.Connect(t.Context(), server.DSN("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { admin.Close(context.Background()) }) // t.Context() has ended then
	g := &guarded{Postgres: server, admin: admin}
	cert, certPEM, keyPEM := selfSigned(t)
	g.cert = cert
	g.write(t, "pg_hba.conf", guardedHBA)
	g.write(t, "server.crt", certPEM)
	g.write(t, "server.key", keyPEM)
	g.exec(t, "alter system set ssl = on")
	g.exec(t, "select pg_reload_conf()")
	require.Eventually(t, func() bool {
		return errors.Is(g.login(t, login{user: "nobody", keys: pgbounce.Password("x"), tls: true}), errServer)
	}, 10*time.Second, 10*time.Millisecond)
	return g
}

func (g *guarded) exec(t *testing.T, sql string) {
	t.Helper()
	_, err := g.admin.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
}

// write lets the server write a file, for it has to own it.
func (g *guarded) write(t *testing.T, name, text string) {
	t.Helper()
	var dir string
	require.NoError(t, g.admin.QueryRow(t.Context(), "show data_directory").Scan(&dir))
	text = base64.StdEncoding.EncodeToString([]byte(text)) // what COPY has nothing to escape in
	g.exec(t, "copy (select "+quote(text)+") to program "+quote("umask 077; base64 -d > '"+dir+"/"+name+"'"))
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func (g *guarded) setPassword(t *testing.T, user, password string) {
	t.Helper()
	g.exec(t, `drop role if exists "`+user+`"`)
	g.exec(t, `create role "`+user+`" login password `+quote(password))
}

// secret returns what the server keeps of a password.
func (g *guarded) secret(t *testing.T, user string) (s string) {
	t.Helper()
	require.NoError(t, g.admin.QueryRow(t.Context(), "select rolpassword from pg_authid where rolname = $1", user).Scan(&s))
	return s
}

// errServer is an ErrorResponse.
var errServer = errors.New("server")

// A login is one with our client half.
type login struct {
	user    string
	keys    pgbounce.SCRAMKeys
	md5     string // the secret to answer with, if asked for md5
	tls     bool
	strip   bool   // hide from the client that the server binds
	binding []byte // instead of the certificate's
}

func (g *guarded) login(t *testing.T, l login) error {
	t.Helper()
	conn, err := net.Dial("tcp", g.Addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	var binding []byte
	if l.tls {
		f := pgproto3.NewFrontend(conn, conn)
		f.Send(&pgproto3.SSLRequest{})
		if err := f.Flush(); err != nil {
			return err
		}
		answer := make([]byte, 1)
		if _, err := conn.Read(answer); err != nil || answer[0] != 'S' {
			return fmt.Errorf("no TLS: %q, %w", answer, err)
		}
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		if err := secure.Handshake(); err != nil {
			return err
		}
		binding = pgbounce.EndPoint(secure.ConnectionState().PeerCertificates[0])
		conn = secure
	}
	if l.binding != nil {
		binding = l.binding
	}
	f := pgproto3.NewFrontend(conn, conn)
	f.Send(&pgproto3.StartupMessage{
		ProtocolVersion: pgproto3.ProtocolVersion30,
		Parameters:      map[string]string{"user": l.user, "database": "postgres"},
	})
	var c *pgbounce.SCRAMClient
	for {
		if err := f.Flush(); err != nil {
			return err
		}
		msg, err := f.Receive()
		if err != nil {
			return err
		}
		switch m := msg.(type) {
		case *pgproto3.AuthenticationMD5Password:
			f.Send(&pgproto3.PasswordMessage{Password: pgbounce.MD5Answer(l.md5, m.Salt)})
		case *pgproto3.AuthenticationSASL:
			offered := m.AuthMechanisms
			if l.strip {
				offered = []string{mechanism}
			}
			if c, err = pgbounce.NewSCRAMClient(l.keys, offered, binding); err != nil {
				return err
			}
			if want := l.tls && !l.strip; want != (c.Mechanism() == mechanismPlus) {
				return fmt.Errorf("chose %s of %q", c.Mechanism(), offered)
			}
			f.Send(&pgproto3.SASLInitialResponse{AuthMechanism: c.Mechanism(), Data: c.First()})
		case *pgproto3.AuthenticationSASLContinue:
			final, err := c.Final(m.Data)
			if err != nil {
				return err
			}
			f.Send(&pgproto3.SASLResponse{Data: final})
		case *pgproto3.AuthenticationSASLFinal:
			if err := c.Verify(m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return fmt.Errorf("%w: %s: %s", errServer, m.Code, m.Message)
		case *pgproto3.ReadyForQuery:
			f.Send(&pgproto3.Terminate{})
			return f.Flush()
		}
	}
}

func TestSCRAMWithPostgres(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)

	// Passwords that SASLprep changes, leaves alone, and does not take.
	for i, password := range []string{
		"hunter2", " spaces ", "it's;,=", "käthe", "ka\u0308the", "ﬁsh", "ＡＢＣ１", "½\u00a0x", "so\u00adft", "x\u200by",
		"\u00ad", "😀½", "\u0221½", "אבג½א", "א½b", "אb½א", "½א", "שלום", "א1", "tab\t½", "Ⅷ", "a\u0340",
	} {
		user := fmt.Sprint("user", i)
		g.setPassword(t, user, password)
		require.NoError(t, g.login(t, login{user: user, keys: pgbounce.Password(password)}), "%+q", password)
		require.NoError(t, g.login(t, login{user: user, keys: pgbounce.Password(password), tls: true}), "%+q", password)
		require.ErrorContains(t, g.login(t, login{user: user, keys: pgbounce.Password(password + "x")}), "28P01", "%+q", password)

		kept := mustSecret(t, g.secret(t, user))
		_, _, scram := kept.Fields()
		require.NotNil(t, scram)
		require.Equal(t, g.secret(t, user), scram.String())
		require.True(t, kept.VerifyPlain(user, password), "%+q", password)
		require.False(t, kept.VerifyPlain(user, password+"x"), "%+q", password)
	}

	// PostgreSQL takes our secrets as its own.
	ours := pgbounce.NewSCRAMSecret("ﬁsh", 5000)
	g.setPassword(t, "ours", ours.String())
	require.Equal(t, ours.String(), g.secret(t, "ours"))
	require.NoError(t, g.login(t, login{user: "ours", keys: pgbounce.Password("ﬁsh"), tls: true}))

	g.passThrough(t)
	g.downgrade(t)

	md5 := pgbounce.MD5Secret("md5", "ﬁsh")
	g.setPassword(t, "md5", md5)
	require.Equal(t, md5, g.secret(t, "md5"))
	require.NoError(t, g.login(t, login{user: "md5", md5: md5}))
	require.ErrorContains(t, g.login(t, login{user: "md5", md5: pgbounce.MD5Secret("md5", "fish")}), "28P01")
}

// passThrough logs a client in to a server half that has only what PostgreSQL
// keeps, and with what it reveals to PostgreSQL itself.
func (g *guarded) passThrough(t *testing.T) {
	t.Helper()
	g.setPassword(t, "alice", "hunter2")
	secret := mustSCRAM(t, g.secret(t, "alice"))
	key, err := exchange{keys: pgbounce.Password("hunter2"), secret: secret}.run()
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, g.login(t, login{user: "alice", keys: pgbounce.Key(key, secret)}))
		require.NoError(t, g.login(t, login{user: "alice", keys: pgbounce.Key(key, secret), tls: true}))
	}
	flipped := append([]byte{key[0] ^ 1}, key[1:]...)
	require.ErrorContains(t, g.login(t, login{user: "alice", keys: pgbounce.Key(flipped, secret)}), "28P01")

	g.setPassword(t, "bob", "hunter2")
	require.ErrorIs(t, g.login(t, login{user: "bob", keys: pgbounce.Key(key, secret)}), pgbounce.ErrSCRAMSecretsDiffer)
	g.setPassword(t, "alice", "hunter2") // salted anew
	require.ErrorIs(t, g.login(t, login{user: "alice", keys: pgbounce.Key(key, secret)}), pgbounce.ErrSCRAMSecretsDiffer)
}

// downgrade puts somebody between our client half and PostgreSQL.
func (g *guarded) downgrade(t *testing.T) {
	t.Helper()
	g.setPassword(t, "carol", "hunter2")
	keys := pgbounce.Password("hunter2")
	require.ErrorIs(t, g.login(t, login{user: "carol", keys: keys, tls: true, binding: []byte("of another")}), errServer)
	require.ErrorIs(t, g.login(t, login{user: "carol", keys: keys, tls: true, strip: true}), errServer)
	require.NoError(t, g.login(t, login{user: "carol", keys: keys, tls: true}))
}
