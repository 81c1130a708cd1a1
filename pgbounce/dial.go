package pgbounce

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	protocol30    = 3 << 16
	cancelCode    = 1234<<16 | 5678
	sslCode       = 1234<<16 | 5679
	gssCode       = 1234<<16 | 5680
	maxLoginReply = 64 << 10
)

// credentials are what a pool's servers log in with.
type credentials struct {
	password string
	md5      string
	scram    *scramKeys
}

func (c credentials) empty() bool { return c.password == "" && c.md5 == "" && c.scram == nil }

// A welcome is what PostgreSQL says of itself at login: all that it reports of
// its parameters.
type welcome struct {
	names  []string
	values map[string]string
	params parameters
}

// dial opens a server on the first host that answers. The pool has its place
// reserved.
func (p *pool) dial(ctx context.Context) (*server, error) {
	p.mu.Lock()
	turn := p.turn
	p.turn++
	p.mu.Unlock()
	db := p.db.config()
	hosts := db.hosts(turn)
	for i, host := range hosts {
		s, err := p.dialHost(ctx, db, host, len(hosts)-i)
		if err == nil || i == len(hosts)-1 || ctx.Err() != nil || !unanswered(err) {
			return s, err
		}
		p.b.log().Warn("pgbounce: the next host is tried", "database", p.db.name, "error", err.Error())
	}
	panic("bug: a database without hosts")
}

// unanswered tells whether another host may do better: this one did not answer,
// or only to say that it is starting or stopping.
func unanswered(err error) bool {
	e, ok := errors.AsType[*wireError](err)
	return !ok || strings.HasPrefix(e.code, "57P")
}

// dialHost opens a server on a host, of which there are so many left to try in
// the same time.
func (p *pool) dialHost(ctx context.Context, db *Database, host string, left int) (*server, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	p.mu.Lock()
	login := p.login
	p.mu.Unlock()
	network, addr, name := db.address(host)
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	bare := conn
	stop := context.AfterFunc(ctx, func() { _ = bare.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s := &server{b: p.b, pool: p, target: addr, addr: conn.RemoteAddr(), local: conn.LocalAddr(), status: 'I', id: p.b.nextID()}
	conn, err = p.encrypt(ctx, conn, network, name)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	_, s.tlsOn = conn.(*tls.Conn)
	w, err := s.logIn(conn, db, login)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("log in to %s: %w", addr, err)
	}
	if !stop() {
		conn.Close()
		return nil, context.Cause(ctx)
	}
	_ = conn.SetDeadline(time.Time{})
	if err := s.wire.take(conn); err != nil {
		conn.Close()
		return nil, err
	}
	s.on = s
	p.greet(w)
	return s, nil
}

// encrypt asks for TLS as configured.
func (p *pool) encrypt(ctx context.Context, conn net.Conn, network, host string) (net.Conn, error) {
	t := p.b.config().ServerTLS
	if t.Mode == TLSDisable || t.Mode == TLSAllow || network == "unix" {
		return conn, nil
	}
	request := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), sslCode)
	if _, err := conn.Write(request); err != nil {
		conn.Close()
		return nil, err
	}
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		conn.Close()
		return nil, err
	}
	if answer[0] != 'S' {
		if t.Mode == TLSPrefer && answer[0] == 'N' {
			return conn, nil
		}
		conn.Close()
		return nil, errors.New("server does not offer TLS")
	}
	raw := &rawConn{Conn: conn}
	tc := tls.Client(raw, t.clientConfig(host))
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// clientConfig returns what to verify of a server.
func (t TLS) clientConfig(host string) *tls.Config {
	cfg := t.Config.Clone()
	if cfg == nil {
		cfg = &tls.Config{}
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	switch t.Mode {
	case TLSVerifyFull:
	case TLSVerifyCA:
		cfg.InsecureSkipVerify = true
		roots := cfg.RootCAs
		cfg.VerifyConnection = func(cs tls.ConnectionState) error { return verifyChain(cs, roots) }
	default:
		cfg.InsecureSkipVerify = true
	}
	return cfg
}

// logIn shakes hands with PostgreSQL up to its first Z.
func (s *server) logIn(conn net.Conn, db *Database, login credentials) (*welcome, error) {
	p := s.pool
	var m []byte
	m = binary.BigEndian.AppendUint32(m, 0)
	m = binary.BigEndian.AppendUint32(m, protocol30)
	add := func(name, value string) { m = append(append(append(append(m, name...), 0), value...), 0) }
	add("user", p.as)
	add("database", p.forDB)
	if p.replication != "" {
		add("replication", p.replication)
	}
	for _, name := range slices.Sorted(maps.Keys(db.Parameters)) {
		add(name, db.Parameters[name])
	}
	m = append(m, 0)
	binary.BigEndian.PutUint32(m, uint32(len(m)))
	if _, err := conn.Write(m); err != nil {
		return nil, err
	}
	w := &welcome{values: map[string]string{}}
	auth := &serverAuth{user: p.as, login: login, conn: conn}
	for {
		kind, body, err := readMessage(conn, maxLoginReply)
		if err != nil {
			return nil, err
		}
		switch kind {
		case 'R':
			if err := auth.answer(body); err != nil {
				return nil, err
			}
		case 'E':
			return nil, parseError(body)
		case 'S':
			name, rest, ok := cstring(body)
			if !ok {
				return nil, errors.New("malformed ParameterStatus")
			}
			value, _, _ := cstring(rest)
			if _, again := w.values[string(name)]; !again {
				w.names = append(w.names, string(name))
			}
			w.values[string(name)] = string(value)
			w.params.set(s.b, string(name), string(value))
		case 'K':
			if len(body) < 8 || len(body) > 4+256 {
				return nil, errors.New("malformed BackendKeyData")
			}
			s.key = cancelKey{pid: binary.BigEndian.Uint32(body), secret: string(body[4:])}
		case 'N', 'v':
		case 'Z':
			if !auth.done {
				return nil, errors.New("server is ready without authentication")
			}
			s.params = w.params
			return w, nil
		default:
			return nil, fmt.Errorf("unexpected message %q", kind)
		}
	}
}

// serverAuth answers what PostgreSQL asks for.
type serverAuth struct {
	user  string
	login credentials
	conn  net.Conn
	scram *scramClient
	done  bool
}

func (a *serverAuth) answer(body []byte) error {
	if len(body) < 4 {
		return errors.New("malformed Authentication")
	}
	kind, rest := binary.BigEndian.Uint32(body), body[4:]
	switch kind {
	case 0:
		if a.scram != nil && !a.scram.verified {
			return errors.New("server has not proved that it knows the password")
		}
		a.done = true
		return nil
	case 3:
		if a.login.password == "" {
			return errors.New("server asks for a password, and none is known")
		}
		return a.send(append([]byte(a.login.password), 0))
	case 5:
		if len(rest) != 4 {
			return errors.New("malformed Authentication")
		}
		secret := a.login.md5
		if secret == "" {
			if a.login.password == "" {
				return errors.New("server asks for an md5 password, and none is known")
			}
			secret = md5Secret(a.user, a.login.password)
		}
		return a.send(append([]byte(md5Answer(secret, [4]byte(rest))), 0))
	case 10:
		return a.sasl(rest)
	case 11, 12:
		if a.scram == nil {
			return errors.New("unexpected SASL message")
		}
		if kind == 12 {
			return a.scram.verify(rest)
		}
		reply, err := a.scram.final(rest)
		if err != nil {
			return err
		}
		return a.send(reply)
	}
	return fmt.Errorf("server asks for authentication %d, which is not supported", kind)
}

func (a *serverAuth) sasl(mechanisms []byte) error {
	names := strings.Split(strings.TrimRight(string(mechanisms), "\x00"), "\x00")
	var keys scramKeys
	switch {
	case a.login.password != "":
		keys.password = a.login.password
	case a.login.scram != nil:
		keys = *a.login.scram
	default:
		return errors.New("server asks for SCRAM, and no password is known")
	}
	var binding []byte
	if tc, ok := a.conn.(*tls.Conn); ok {
		binding = endPoint(tc.ConnectionState().PeerCertificates[0])
	}
	scram, err := newSCRAMClient(keys, names, binding)
	if err != nil {
		return err
	}
	a.scram = scram
	first := scram.first()
	m := append([]byte(scram.mechanism), 0)
	m = binary.BigEndian.AppendUint32(m, uint32(len(first)))
	return a.send(append(m, first...))
}

func (a *serverAuth) send(body []byte) error {
	_, err := a.conn.Write(append(appendHeader(nil, 'p', len(body)), body...))
	return err
}

// readMessage reads one message, and not a byte more.
func readMessage(r io.Reader, limit int) (kind byte, body []byte, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := messageSize(head[:]) - headerSize
	if size < 0 || size > limit {
		return 0, nil, fmt.Errorf("message %q has a length of %d", head[0], size)
	}
	body = make([]byte, size)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}

// dialCancel opens a connection for a cancel request to a server.
func (p *pool) dialCancel(ctx context.Context, s *server) (net.Conn, error) {
	network := "tcp"
	if strings.HasPrefix(s.target, "/") || strings.HasPrefix(s.target, "@") {
		network = "unix"
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, s.target)
	if err != nil {
		return nil, err
	}
	if !s.tlsOn {
		return conn, nil
	}
	host, _, _ := net.SplitHostPort(s.target)
	return p.encrypt(ctx, conn, network, host)
}
