package pgbounce_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// An issuer signs certificates, and writes them to a folder.
type issuer struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{dir: t.TempDir()}
	i.issue(t, "ca", 1)
	return i
}

// issue writes name.crt and name.key, and returns their paths. The first one
// signs the others.
func (i *issuer) issue(t *testing.T, name string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotAfter: time.Now().Add(time.Hour), IsCA: i.cert == nil, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := i.cert, i.key
	if parent == nil {
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, private.Public(), signer)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(i.dir, name+".crt"), filepath.Join(i.dir, name+".key")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	if i.cert == nil {
		i.cert, err = x509.ParseCertificate(der)
		require.NoError(t, err)
		i.key = private
	}
	return cert, key
}

// readTLS reads a file with these lines.
func readTLS(t *testing.T, lines ...string) (pgbounce.File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.ini")
	text := "[pgbouncer]\n" + strings.Join(lines, "\n")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return pgbounce.ReadINI(path)
}

// shake returns what the server side and the client side say to one another.
func shake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // a net.Pipe has no room for an alert
	require.NoError(t, err)
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer b.Close()
	a, err := l.Accept()
	require.NoError(t, err)
	defer a.Close()
	deadline := time.Now().Add(10 * time.Second)
	require.NoError(t, a.SetDeadline(deadline))
	require.NoError(t, b.SetDeadline(deadline))
	done := make(chan error, 1)
	go func() {
		c := tls.Server(a, server)
		_, err := c.Read(make([]byte, 1)) // in TLS 1.3 the client's certificate is looked at after its handshake
		done <- err
		a.Close()
	}()
	c := tls.Client(b, client)
	if _, clientErr = c.Write([]byte{1}); clientErr != nil {
		b.Close()
	}
	return c.ConnectionState(), <-done, clientErr
}

func TestTLSOfBothSides(t *testing.T) {
	t.Parallel()
	ours, foreign := newIssuer(t), newIssuer(t)
	ca := filepath.Join(ours.dir, "ca.crt")
	cert, key := ours.issue(t, "pooler", 2)
	userCert, userKey := ours.issue(t, "bob", 3)
	foreignCert, foreignKey := foreign.issue(t, "bob", 4)

	f, err := readTLS(
		t, "client_tls_sslmode = verify-full", "client_tls_ca_file = "+ca, "client_tls_cert_file = "+cert, "client_tls_key_file = "+key,
		"server_tls_sslmode = verify-full", "server_tls_ca_file = "+ca, "server_tls_cert_file = "+userCert, "server_tls_key_file = "+userKey,
	)
	require.NoError(t, err)
	require.Equal(t, pgbounce.TLSVerifyFull, f.Config.ClientTLS.Mode)
	require.Equal(t, pgbounce.TLSVerifyFull, f.Config.ServerTLS.Mode)
	_, err = pgbounce.New(f.Config)
	require.NoError(t, err)

	// The side of the servers talks to that of the clients, as if it were
	// PostgreSQL.
	toServer := f.Config.ServerTLS.Config.Clone()
	toServer.ServerName = "pooler"
	state, serverErr, clientErr := shake(t, f.Config.ClientTLS.Config, toServer)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr)
	require.EqualValues(t, tls.VersionTLS13, state.Version)

	toServer.ServerName = "other"
	_, _, clientErr = shake(t, f.Config.ClientTLS.Config, toServer)
	require.ErrorContains(t, clientErr, "not other")

	for name, pair := range map[string][]string{"None": nil, "Foreign": {foreignCert, foreignKey}} {
		client := &tls.Config{InsecureSkipVerify: true} // only the other side is looked at
		if pair != nil {
			c, err := tls.LoadX509KeyPair(pair[0], pair[1])
			require.NoError(t, err)
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c, nil }
		}
		_, serverErr, _ = shake(t, f.Config.ClientTLS.Config, client)
		require.Error(t, serverErr, name)
	}
}

func TestTLSVersionsCiphersAndCurves(t *testing.T) {
	t.Parallel()
	ours := newIssuer(t)
	cert, key := ours.issue(t, "pooler", 2)
	files := []string{"client_tls_sslmode = allow", "client_tls_cert_file = " + cert, "client_tls_key_file = " + key}
	read := func(lines ...string) *tls.Config {
		f, err := readTLS(t, append(lines, files...)...)
		require.NoError(t, err)
		require.Empty(t, f.Warnings)
		return f.Config.ClientTLS.Config
	}
	client := &tls.Config{InsecureSkipVerify: true}

	const suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
	server := read("client_tls_protocols = tlsv1.2", "client_tls_ciphers = "+suite, "client_tls_ecdhcurve = secp384r1")
	state, serverErr, _ := shake(t, server, client)
	require.NoError(t, serverErr)
	require.EqualValues(t, tls.VersionTLS12, state.Version)
	require.Equal(t, suite, tls.CipherSuiteName(state.CipherSuite))
	require.Equal(t, tls.CurveP384, state.CurveID)

	_, serverErr, _ = shake(t, server, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	require.ErrorContains(t, serverErr, "versions")
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	_, serverErr, _ = shake(t, read(), old)
	require.ErrorContains(t, serverErr, "versions", "the default is 1.2 and 1.3")
	_, serverErr, _ = shake(t, read("client_tls_protocols = all", "client_tls_ciphers = all"), old)
	require.NoError(t, serverErr)
}

func TestTLSReadsChangedFilesAgain(t *testing.T) {
	t.Parallel()
	ours := newIssuer(t)
	serial := func() int64 {
		f, err := readTLS(
			t, "client_tls_sslmode = require",
			"client_tls_cert_file = "+filepath.Join(ours.dir, "pooler.crt"), "client_tls_key_file = "+filepath.Join(ours.dir, "pooler.key"),
		)
		require.NoError(t, err)
		state, _, err := shake(t, f.Config.ClientTLS.Config, &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	ours.issue(t, "pooler", 7)
	require.EqualValues(t, 7, serial())
	ours.issue(t, "pooler", 8)
	require.EqualValues(t, 8, serial())
}

func TestTLSErrorsNameKeyAndFile(t *testing.T) {
	t.Parallel()
	ours := newIssuer(t)
	cert, key := ours.issue(t, "pooler", 2)
	_, otherKey := ours.issue(t, "other", 3)
	for _, test := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"NoCertificate", []string{"client_tls_sslmode=require"}, []string{"require", "client_tls_cert_file"}},
		{"NoKey", []string{"client_tls_sslmode=require", "client_tls_cert_file=" + cert}, []string{"client_tls_key_file"}},
		{"MissingCertificate", []string{"client_tls_sslmode=require", "client_tls_cert_file=/no/a.crt", "client_tls_key_file=" + key}, []string{"client_tls_cert_file", "open /no/a.crt"}},
		{"MissingKey", []string{"client_tls_sslmode=require", "client_tls_cert_file=" + cert, "client_tls_key_file=/no/a.key"}, []string{"client_tls_key_file", "open /no/a.key"}},
		{"OtherKey", []string{"client_tls_sslmode=require", "client_tls_cert_file=" + cert, "client_tls_key_file=" + otherKey}, []string{cert, otherKey}},
		{"NoAuthority", []string{"client_tls_sslmode=verify-ca", "client_tls_cert_file=" + cert, "client_tls_key_file=" + key}, []string{"verify-ca", "client_tls_ca_file"}},
		{"MissingAuthority", []string{"server_tls_ca_file=/no/ca.crt"}, []string{"server_tls_ca_file: open /no/ca.crt"}},
		{"EmptyAuthority", []string{"server_tls_ca_file=" + key}, []string{"server_tls_ca_file: " + key + " has no certificate"}},
		{"HalfOfServers", []string{"server_tls_cert_file=" + cert}, []string{"server_tls_cert_file and server_tls_key_file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := readTLS(t, test.lines...)
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
	f, err := readTLS(t, "server_tls_sslmode=disable", "server_tls_ca_file=/no/ca.crt", "client_tls_cert_file=/no/a.crt")
	require.NoError(t, err, "what is off is not read")
	require.Nil(t, f.Config.ServerTLS.Config)
}
