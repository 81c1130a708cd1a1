package pgbounce

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
)

// maxPassword is the longest message with a password, as in PgBouncer.
const maxPassword = 65_535

// errPassword is what all who fail are told, so that names cannot be tried.
var errPassword = fatal("28P01", "password authentication failed")

// authenticate finds out whether a client is who it says, and returns what its
// servers can log in with.
func (b *Bouncer) authenticate(ctx context.Context, s *startup, conn net.Conn, inProcess bool) (credentials, error) {
	cfg := b.config()
	method := cmp.Or(cfg.Auth.Type, "trust")
	tc, encrypted := conn.(*tls.Conn)
	ident := ""
	if inProcess {
		method = "trust"
	}
	if method == "hba" {
		m, mapped, ok := cfg.Auth.HBA.match(s.database, s.user, conn.RemoteAddr(), encrypted, s.replication != "" && !strings.EqualFold(s.replication, "database"))
		if !ok || m == "reject" {
			return credentials{}, fatal("28000", "pg_hba.conf rejects connection")
		}
		method, ident = m, mapped
	}
	switch method {
	case "any":
		return credentials{}, nil
	case "trust":
		text, _, err := b.secretOf(ctx, s)
		if err != nil && !inProcess {
			return credentials{}, err
		}
		return credentialsOf(text), nil
	case "cert":
		if !encrypted || len(tc.ConnectionState().VerifiedChains) == 0 || !b.certifies(tc.ConnectionState().PeerCertificates[0], ident, s.user) {
			return credentials{}, fatal("28000", "TLS certificate name mismatch")
		}
		text, _, err := b.secretOf(ctx, s)
		return credentialsOf(text), err
	case "peer":
		if !b.isPeer(conn, ident, s.user) {
			return credentials{}, fatal("28000", "unix socket login rejected")
		}
		text, _, err := b.secretOf(ctx, s)
		return credentialsOf(text), err
	}
	text, known, err := b.secretOf(ctx, s)
	if err != nil {
		return credentials{}, err
	}
	sec, err := parseSecret(text)
	if err != nil || text == "" {
		known, sec = false, secret{}
	}
	switch method {
	case "plain", "password":
		return b.askPlain(s, conn, sec, known, text)
	case "md5":
		// Who does not exist looks like most who do: with a SCRAM secret.
		if sec.scram == nil && known {
			return b.askMD5(s, conn, sec, text)
		}
	}
	return b.askSCRAM(s, conn, sec, known, text)
}

// credentialsOf returns what a stored secret is worth to a server. Of SCRAM it
// is nothing before a login has shown the key.
func credentialsOf(text string) credentials {
	sec, err := parseSecret(text)
	if err != nil {
		return credentials{}
	}
	return credentials{password: sec.plain, md5: sec.md5}
}

func (b *Bouncer) askPlain(s *startup, conn net.Conn, sec secret, known bool, text string) (credentials, error) {
	given, err := ask(conn, 3, nil)
	if err != nil {
		return credentials{}, err
	}
	password, _, ok := cstring(given)
	if !ok || !sec.verifyPlain(s.user, string(password)) || !known {
		return credentials{}, errPassword
	}
	return credentials{password: string(password)}, nil
}

func (b *Bouncer) askMD5(s *startup, conn net.Conn, sec secret, text string) (credentials, error) {
	var salt [4]byte
	_, _ = rand.Read(salt[:])
	given, err := ask(conn, 5, salt[:])
	if err != nil {
		return credentials{}, err
	}
	answer, _, ok := cstring(given)
	if !ok || !sec.verifyMD5(s.user, salt, string(answer)) {
		return credentials{}, errPassword
	}
	return credentialsOf(text), nil
}

func (b *Bouncer) askSCRAM(s *startup, conn net.Conn, sec secret, known bool, text string) (credentials, error) {
	if sec.md5 != "" {
		// SCRAM cannot be done from an md5 secret; whoever has it is told no
		// more than who does not exist.
		sec, known = secret{}, false
	}
	k := b.scramOf(s.user, text, sec, known)
	var binding []byte
	if tc, ok := conn.(*tls.Conn); ok {
		binding = b.endPoint(tc)
	}
	server := newSCRAMServer(k, binding)
	var offer []byte
	for _, m := range server.mechanisms() {
		offer = append(append(offer, m...), 0)
	}
	first, err := ask(conn, 10, append(offer, 0))
	if err != nil {
		return credentials{}, err
	}
	mechanism, rest, ok := cstring(first)
	if !ok || len(rest) < 4 {
		return credentials{}, fatal("08P01", "malformed SASLInitialResponse")
	}
	if n := int32(binary.BigEndian.Uint32(rest)); n < 0 || int(n) != len(rest)-4 {
		return credentials{}, fatal("08P01", "malformed SASLInitialResponse")
	}
	reply, err := server.first(string(mechanism), rest[4:])
	if err != nil {
		return credentials{}, fatal("08P01", "%v", err)
	}
	last, err := ask(conn, 11, reply)
	if err != nil {
		return credentials{}, err
	}
	reply, clientKey, err := server.final(last)
	if errors.Is(err, errSCRAMProof) {
		return credentials{}, errPassword
	}
	if err != nil {
		return credentials{}, fatal("08P01", "%v", err)
	}
	if _, err := conn.Write(authentication(12, reply)); err != nil {
		return credentials{}, err
	}
	if sec.plain != "" {
		return credentials{password: sec.plain}, nil
	}
	return credentials{scram: &scramKeys{clientKey: clientKey, secret: k}}, nil
}

func authentication(kind uint32, body []byte) []byte {
	p := binary.BigEndian.AppendUint32(appendHeader(nil, 'R', 4+len(body)), kind)
	return append(p, body...)
}

// ask sends a request and returns what the client answers.
func ask(conn net.Conn, kind uint32, body []byte) ([]byte, error) {
	if _, err := conn.Write(authentication(kind, body)); err != nil {
		return nil, err
	}
	got, answer, err := readMessage(conn, maxPassword)
	if err != nil {
		return nil, err
	}
	if got != 'p' {
		if got == 'X' {
			return nil, io.EOF // it wants to ask its user first
		}
		return nil, fatal("08P01", "expected password response, got message type %d", got)
	}
	return answer, nil
}

// endPoint returns what a SCRAM login over TLS is bound to: our certificate.
func (b *Bouncer) endPoint(tc *tls.Conn) []byte {
	certs := b.config().ClientTLS.Config.Certificates
	if len(certs) != 1 || len(certs[0].Certificate) == 0 {
		return nil // which one was shown is not known
	}
	cert, err := x509.ParseCertificate(certs[0].Certificate[0])
	if err != nil {
		return nil
	}
	return endPoint(cert)
}

// certifies tells whether a certificate is a user's.
func (b *Bouncer) certifies(cert *x509.Certificate, ident, user string) bool {
	if ident != "" {
		return b.config().Auth.HBA.allows(ident, cert.Subject.CommonName, user)
	}
	return cert.Subject.CommonName == user
}

// scrams keeps the SCRAM secrets made of passwords, which take milliseconds.
type scrams struct {
	mu   sync.Mutex
	made map[string]madeSCRAM
}

type madeSCRAM struct {
	text string
	k    *scramSecret
}

func (b *Bouncer) scramOf(user, text string, sec secret, known bool) *scramSecret {
	if !known {
		return mockSCRAMSecret(user, b.mockKey[:])
	}
	if sec.scram != nil {
		return sec.scram
	}
	b.scrams.mu.Lock()
	have, ok := b.scrams.made[user]
	b.scrams.mu.Unlock()
	if ok && equal(have.text, text) {
		return have.k
	}
	k := sec.scramFor(user, b.mockKey[:])
	b.scrams.mu.Lock()
	defer b.scrams.mu.Unlock()
	if b.scrams.made == nil || len(b.scrams.made) > 10_000 {
		b.scrams.made = map[string]madeSCRAM{}
	}
	b.scrams.made[user] = madeSCRAM{text, k}
	return k
}

// secretOf returns what a user's password is checked against.
func (b *Bouncer) secretOf(ctx context.Context, s *startup) (text string, known bool, err error) {
	cfg := b.config()
	if text, ok := cfg.Auth.Secrets[s.user]; ok {
		return text, true, nil
	}
	if s.database == "pgbouncer" {
		return "", false, nil
	}
	db, ok := cfg.database(s.database)
	if !ok {
		return "", false, nil
	}
	asker := cmp.Or(db.AuthUser, cfg.Auth.User)
	if asker == "" {
		return "", false, nil
	}
	return b.authQuery(ctx, s.database, db, asker, s.user)
}
