package pgbounce

import (
	"maps"
	"net"
	"slices"
)

type (
	Secret      = secret
	SCRAMSecret = scramSecret
	SCRAMKeys   = scramKeys
	SCRAMServer = scramServer
	SCRAMClient = scramClient
)

var (
	ParseSecret     = parseSecret
	MD5Secret       = md5Secret
	MD5Answer       = md5Answer
	NewSCRAMSecret  = newSCRAMSecret
	MockSCRAMSecret = mockSCRAMSecret
	NewSCRAMServer  = newSCRAMServer
	NewSCRAMClient  = newSCRAMClient
	EndPoint        = endPoint
	SASLPrep        = saslPrep

	ErrSCRAMProof         = errSCRAMProof
	ErrSCRAMSignature     = errSCRAMSignature
	ErrSCRAMSecretsDiffer = errSCRAMSecretsDiffer
)

const (
	SCRAMMaxIterations = scramMaxIterations
	SCRAMMaxMessage    = scramMaxMessage
	SCRAMMaxNonce      = scramMaxNonce
	SCRAMMaxSalt       = scramMaxSalt
)

// Fields returns what of a secret is set.
func (s secret) Fields() (plain, md5 string, scram *scramSecret) { return s.plain, s.md5, s.scram }

func (s secret) VerifyPlain(user, password string) bool { return s.verifyPlain(user, password) }

func (s secret) VerifyMD5(user string, salt [4]byte, answer string) bool {
	return s.verifyMD5(user, salt, answer)
}

func (s secret) SCRAMFor(user string, key []byte) *scramSecret { return s.scramFor(user, key) }

// AsMock returns the same secret as if nobody had it.
func (s *scramSecret) AsMock() *scramSecret {
	m := *s
	m.mock = true
	return &m
}

func (s *scramSecret) Salt() []byte { return s.salt }

func (s *scramSecret) Iterations() int { return s.iterations }

func Password(p string) scramKeys { return scramKeys{password: p} }

func Key(clientKey []byte, s *scramSecret) scramKeys {
	return scramKeys{clientKey: clientKey, secret: s}
}

func (s *scramServer) SetNonce(n string) { s.ownPart = n }

func (s *scramServer) Mechanisms() []string { return s.mechanisms() }

func (s *scramServer) First(mechanism string, msg []byte) ([]byte, error) {
	return s.first(mechanism, msg)
}

func (s *scramServer) Final(msg []byte) (reply, clientKey []byte, err error) { return s.final(msg) }

func (c *scramClient) Nonce() string { return c.ownPart }

func (c *scramClient) Mechanism() string { return c.mechanism }

func (c *scramClient) First() []byte { return c.first() }

func (c *scramClient) Final(serverFirst []byte) ([]byte, error) { return c.final(serverFirst) }

func (c *scramClient) Verify(serverFinal []byte) error { return c.verify(serverFinal) }

func (c *scramClient) Verified() bool { return c.verified }

func (h *HBA) Match(database, user string, addr net.Addr, tls, replication bool) (method, ident string, ok bool) {
	return h.match(database, user, addr, tls, replication)
}

func (h *HBA) Allows(ident, system, user string) bool { return h.allows(ident, system, user) }

// An HBARule is a rule in the words of PostgreSQL's view pg_hba_file_rules.
type HBARule struct {
	Type             string
	Databases, Users []string
	Address          string
	Method           string
	Ident            string
}

func (h *HBA) Rules() (rules []HBARule) {
	for _, r := range h.rules {
		out := HBARule{
			Type: r.kind, Databases: r.databases.words(), Users: r.users.words(),
			Method: r.method, Ident: r.ident,
		}
		switch {
		case r.prefix.IsValid():
			out.Address = r.prefix.String()
		case r.kind != "local":
			out.Address = "all"
		}
		rules = append(rules, out)
	}
	return rules
}

func (n *hbaNames) words() []string {
	words := slices.Sorted(maps.Keys(n.names))
	if n.all {
		words = append(words, "all")
	}
	if n.sameUser {
		words = append(words, "sameuser")
	}
	if n.replication {
		words = append(words, "replication")
	}
	return words
}
