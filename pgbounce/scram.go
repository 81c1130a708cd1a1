package pgbounce

import (
	"crypto"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // some certificates are signed with it
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// This is SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: the name
// in the client's first message is ignored, for the startup message had it.
//
//	client                                   server
//	 first()  ── n,,n=,r=<nonce> ─────────▶  first()
//	 final()  ◀─ r=<both>,s=<salt>,i=<n> ──
//	          ── c=<header>,r=,p=<proof> ──▶ final()
//	 verify() ◀─ v=<signature> ────────────
//
// The proof reveals to a server that has the secret the client's key, with
// which it can in turn log in wherever the very same secret is kept. That is
// how a pooler gets by without passwords.
const (
	scramMechanism = "SCRAM-SHA-256"
	scramPlus      = "SCRAM-SHA-256-PLUS"
	scramEndPoint  = "p=tls-server-end-point"

	scramIterations = 4096 // PostgreSQL's default

	// What comes from the network is held against these. A million iterations,
	// which nothing interrupts, are less than a second.
	scramMaxIterations = 1_000_000
	scramMaxMessage    = 64 << 10
	scramMaxNonce      = 1 << 10
	scramMaxSalt       = 1 << 10
)

var (
	// errSCRAMProof is a client's wrong password.
	errSCRAMProof = errors.New("wrong SCRAM proof")

	// errSCRAMSignature is a server that does not know the secret.
	errSCRAMSignature = errors.New("wrong SCRAM signature")

	// errSCRAMSecretsDiffer is a key that was made for another secret than the
	// server's: their salts or iterations differ, though both may be of the
	// same password.
	errSCRAMSecretsDiffer = errors.New("the server's SCRAM secret is not the one the client logged in with")
)

// A scramSecret is what PostgreSQL keeps of a password. It is read only.
type scramSecret struct {
	iterations           int
	salt                 []byte
	storedKey, serverKey []byte
	mock                 bool // no proof is right
}

// newSCRAMSecret returns a new secret of a password.
func newSCRAMSecret(password string, iterations int) *scramSecret {
	salt := make([]byte, 16)
	rand.Read(salt) // never fails
	_, s, err := deriveSCRAM(password, salt, iterations)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return s
}

// mockSCRAMSecret returns the secret of a user who has none. As long as the
// key is the same, so is the salt.
func mockSCRAMSecret(user string, key []byte) *scramSecret {
	return &scramSecret{
		iterations: scramIterations,
		salt:       mockSalt(user, key),
		storedKey:  make([]byte, sha256.Size),
		serverKey:  make([]byte, sha256.Size),
		mock:       true,
	}
}

func mockSalt(user string, key []byte) []byte { return sign(key, user)[:16] }

// deriveSCRAM returns the client's key and the secret of a password. It fails
// on short salts if Go is told to follow FIPS 140.
func deriveSCRAM(password string, salt []byte, iterations int) (clientKey []byte, s *scramSecret, err error) {
	salted, err := pbkdf2.Key(sha256.New, saslPrep(password), salt, iterations, sha256.Size)
	if err != nil {
		return nil, nil, err
	}
	clientKey = sign(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	return clientKey, &scramSecret{
		iterations: iterations,
		salt:       salt,
		storedKey:  stored[:],
		serverKey:  sign(salted, "Server Key"),
	}, nil
}

// parseSCRAMSecret is the reverse of String.
func parseSCRAMSecret(text string) (*scramSecret, error) {
	var s scramSecret
	rest, ok := strings.CutPrefix(text, scramMechanism+"$")
	count, rest, ok1 := strings.Cut(rest, ":")
	salt, rest, ok2 := strings.Cut(rest, "$")
	stored, server, ok3 := strings.Cut(rest, ":")
	if !ok || !ok1 || !ok2 || !ok3 {
		return nil, errors.New("SCRAM secret: want SCRAM-SHA-256$iterations:salt$stored:server")
	}
	var err error
	if s.iterations, err = parseIterations(count); err != nil {
		return nil, fmt.Errorf("SCRAM secret: %w", err)
	}
	if s.salt, ok = decode64(salt, 1, scramMaxSalt); !ok {
		return nil, fmt.Errorf("SCRAM secret: want a salt of 1 to %d bytes in base64", scramMaxSalt)
	}
	s.storedKey, ok1 = decode64(stored, sha256.Size, sha256.Size)
	s.serverKey, ok2 = decode64(server, sha256.Size, sha256.Size)
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("SCRAM secret: want two keys of %d bytes in base64", sha256.Size)
	}
	return &s, nil
}

// String returns the secret as pg_authid has it.
func (s *scramSecret) String() string {
	return fmt.Sprintf("%s$%d:%s$%s:%s", scramMechanism, s.iterations,
		encode64(s.salt), encode64(s.storedKey), encode64(s.serverKey))
}

// A scramServer is the side of one login that has a secret.
type scramServer struct {
	secret  *scramSecret
	binding []byte
	ownPart string // of the nonce

	nonce       string
	channel     string // the "c=" that the client must send
	clientFirst string
	serverFirst string
}

// newSCRAMServer returns the server of a login. The binding is what
// [endPoint] returns for the certificate that the client was shown, or nil
// without TLS; with it, the PLUS mechanism is offered too.
func newSCRAMServer(s *scramSecret, binding []byte) *scramServer {
	return &scramServer{secret: s, binding: binding, ownPart: newNonce()}
}

// mechanisms are those to offer to the client.
func (s *scramServer) mechanisms() []string {
	if s.binding == nil {
		return []string{scramMechanism}
	}
	return []string{scramPlus, scramMechanism}
}

// first takes the mechanism that the client chose and its first message, and
// returns the server's.
func (s *scramServer) first(mechanism string, msg []byte) (reply []byte, err error) {
	if len(msg) > scramMaxMessage {
		return nil, errors.New("SCRAM message is too long")
	}
	if s.clientFirst != "" {
		return nil, errors.New("second first message of SCRAM")
	}
	flag, rest, ok := strings.Cut(string(msg), ",")
	authzid, bare, ok2 := strings.Cut(rest, ",")
	if !ok || !ok2 {
		return nil, errors.New("malformed SCRAM message")
	}
	header := flag + ",,"
	bound := []byte(header)
	switch {
	case !slices.Contains(s.mechanisms(), mechanism):
		return nil, errors.New("SASL mechanism was not offered")
	case authzid != "":
		return nil, errors.New("SCRAM authorization identity is not supported")
	case mechanism == scramPlus && flag == scramEndPoint:
		bound = append(bound, s.binding...)
	case mechanism == scramPlus:
		return nil, errors.New("SCRAM channel binding of another type than tls-server-end-point")
	case flag == "y" && s.binding != nil:
		// Somebody between us has taken the offer away.
		return nil, errors.New("SCRAM client believes that channel binding was not offered")
	case flag != "n" && flag != "y":
		return nil, errors.New("SCRAM channel binding without the PLUS mechanism")
	}
	if strings.HasPrefix(bare, "m=") {
		return nil, errors.New("unknown mandatory SCRAM extension")
	}
	name, rest, _ := strings.Cut(bare, ",")
	nonce, _, _ := strings.Cut(rest, ",")
	nonce, ok = strings.CutPrefix(nonce, "r=")
	if !ok || !strings.HasPrefix(name, "n=") || !isNonce(nonce) {
		return nil, errors.New("malformed SCRAM message")
	}
	s.clientFirst = bare
	s.nonce = nonce + s.ownPart
	s.channel = "c=" + encode64(bound)
	s.serverFirst = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, encode64(s.secret.salt), s.secret.iterations)
	return []byte(s.serverFirst), nil
}

// final takes the client's last message. It returns the server's, and the
// client's key, or errSCRAMProof for a wrong password. There is one attempt.
func (s *scramServer) final(msg []byte) (reply, clientKey []byte, err error) {
	if len(msg) > scramMaxMessage {
		return nil, nil, errors.New("SCRAM message is too long")
	}
	if s.serverFirst == "" {
		return nil, nil, errors.New("final message of SCRAM out of turn")
	}
	serverFirst, text := s.serverFirst, string(msg)
	s.serverFirst = ""
	last := strings.LastIndexByte(text, ',')
	if last < 0 {
		return nil, nil, errors.New("malformed SCRAM message")
	}
	channel, rest, _ := strings.Cut(text[:last], ",")
	nonce, _, _ := strings.Cut(rest, ",")
	encoded, ok := strings.CutPrefix(text[last+1:], "p=")
	proof, ok2 := decode64(encoded, sha256.Size, sha256.Size)
	switch {
	case !ok || !ok2:
		return nil, nil, errors.New("malformed SCRAM message")
	case channel != s.channel:
		return nil, nil, errors.New("wrong SCRAM channel binding")
	case nonce != "r="+s.nonce:
		return nil, nil, errors.New("wrong SCRAM nonce")
	}
	exchange := s.clientFirst + "," + serverFirst + "," + text[:last]
	clientKey = xor(proof, sign(s.secret.storedKey, exchange))
	stored := sha256.Sum256(clientKey)
	if !hmac.Equal(stored[:], s.secret.storedKey) || s.secret.mock {
		return nil, nil, errSCRAMProof
	}
	return []byte("v=" + encode64(sign(s.secret.serverKey, exchange))), clientKey, nil
}

// scramKeys are what a client proves itself with: a password, or the key that
// a login by the same secret has revealed.
type scramKeys struct {
	password  string
	clientKey []byte
	secret    *scramSecret // of clientKey
}

// A scramClient is the side of one login that has a password or a key.
type scramClient struct {
	mechanism string // the chosen one
	keys      scramKeys
	ownPart   string // of the nonce
	header    string
	bound     []byte // header and binding
	exchange  string
	verified  bool // the server has shown that it knows the secret
}

// newSCRAMClient returns the client of a login to a server that offers these
// mechanisms. The binding is what [endPoint] returns for the certificate that
// the server showed, or nil without TLS.
func newSCRAMClient(k scramKeys, offered []string, binding []byte) (*scramClient, error) {
	c := &scramClient{mechanism: scramMechanism, keys: k, ownPart: newNonce(), header: "n,,"}
	switch {
	case binding != nil && slices.Contains(offered, scramPlus):
		c.mechanism, c.header = scramPlus, scramEndPoint+",,"
		c.bound = slices.Concat([]byte(c.header), binding)
		return c, nil
	case !slices.Contains(offered, scramMechanism):
		return nil, errors.New("the server offers no SASL mechanism that we know")
	case binding != nil:
		c.header = "y,," // the server ends the login if it did offer PLUS
	}
	c.bound = []byte(c.header)
	return c, nil
}

func (c *scramClient) firstBare() string { return "n=,r=" + c.ownPart }

// first returns the client's first message.
func (c *scramClient) first() []byte { return []byte(c.header + c.firstBare()) }

// final takes the server's first message and returns the client's last one. A
// password costs as many iterations as the server asks for.
func (c *scramClient) final(serverFirst []byte) ([]byte, error) {
	if len(serverFirst) > scramMaxMessage {
		return nil, errors.New("SCRAM message is too long")
	}
	text := string(serverFirst)
	nonce, rest, _ := strings.Cut(text, ",")
	salt64, rest, _ := strings.Cut(rest, ",")
	count, _, _ := strings.Cut(rest, ",")
	nonce, ok := strings.CutPrefix(nonce, "r=")
	salt64, ok2 := strings.CutPrefix(salt64, "s=")
	count, ok3 := strings.CutPrefix(count, "i=")
	if !ok || !ok2 || !ok3 {
		return nil, errors.New("malformed SCRAM message")
	}
	if !isNonce(nonce) || !strings.HasPrefix(nonce, c.ownPart) || nonce == c.ownPart {
		return nil, errors.New("wrong SCRAM nonce")
	}
	salt, ok := decode64(salt64, 1, scramMaxSalt)
	if !ok {
		return nil, fmt.Errorf("SCRAM salt: want 1 to %d bytes in base64", scramMaxSalt)
	}
	iterations, err := parseIterations(count)
	if err != nil {
		return nil, err
	}
	switch {
	case c.keys.clientKey == nil:
		c.keys.clientKey, c.keys.secret, err = deriveSCRAM(c.keys.password, salt, iterations)
		if err != nil {
			return nil, err
		}
	case iterations != c.keys.secret.iterations || !slices.Equal(salt, c.keys.secret.salt):
		return nil, errSCRAMSecretsDiffer
	}
	withoutProof := "c=" + encode64(c.bound) + ",r=" + nonce
	c.exchange = c.firstBare() + "," + text + "," + withoutProof
	proof := xor(c.keys.clientKey, sign(c.keys.secret.storedKey, c.exchange))
	return []byte(withoutProof + ",p=" + encode64(proof)), nil
}

// verify takes the server's last message. A server that says AuthenticationOk
// before that, which leaves verified false, may be anyone.
func (c *scramClient) verify(serverFinal []byte) error {
	if len(serverFinal) > scramMaxMessage {
		return errors.New("SCRAM message is too long")
	}
	if c.exchange == "" {
		return errors.New("final message of SCRAM out of turn")
	}
	encoded, _, _ := strings.Cut(string(serverFinal), ",") // extensions may follow
	encoded, ok := strings.CutPrefix(encoded, "v=")
	signature, ok2 := decode64(encoded, sha256.Size, sha256.Size)
	if !ok || !ok2 || !hmac.Equal(signature, sign(c.keys.secret.serverKey, c.exchange)) {
		return errSCRAMSignature
	}
	c.verified = true
	return nil
}

// endPoint returns what tls-server-end-point (RFC 5929) binds a login to: the
// certificate's hash, by the hash function it was signed with. For Ed25519,
// which has none, it is nil.
func endPoint(c *x509.Certificate) []byte {
	var hash crypto.Hash
	switch c.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	case x509.PureEd25519, x509.UnknownSignatureAlgorithm:
		return nil
	default: // MD5 and SHA-1 too count as SHA-256
		hash = crypto.SHA256
	}
	h := hash.New()
	h.Write(c.Raw)
	return h.Sum(nil)
}

func newNonce() string {
	b := make([]byte, 18)
	rand.Read(b) // never fails
	return encode64(b)
}

// isNonce tells whether s is printable and of a fair length.
func isNonce(s string) bool {
	return s != "" && len(s) <= scramMaxNonce &&
		strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' }) < 0
}

func parseIterations(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > scramMaxIterations || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("SCRAM iterations: want 1 to %d", scramMaxIterations)
	}
	return n, nil
}

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// decode64 takes each value in one form only, so that no byte of a message can
// be changed unseen. The decoder alone would let newlines pass.
func decode64(s string, low, high int) ([]byte, bool) {
	if len(s) > base64.StdEncoding.EncodedLen(high) {
		return nil, false
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	ok := err == nil && len(b) >= low && len(b) <= high && len(s) == base64.StdEncoding.EncodedLen(len(b))
	return b, ok
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	subtle.XORBytes(out, a, b)
	return out
}
