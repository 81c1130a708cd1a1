package pgbounce

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
)

// maxStartup is the longest first packet, as PostgreSQL has it.
const maxStartup = 10_000

// A startup is the first packet of a connection.
type startup struct {
	cancel *cancelKey // it is a cancel request, and nothing else
	minor  int        // of the protocol, 0 or 2
	// negotiate tells that the client asked for what there is not, and
	// unknown are the protocol options among that.
	negotiate bool
	unknown   []string

	user, database string
	replication    string
	others         []startupParameter // in their order
	conn           net.Conn           // encrypted by now, if the client asked for it
}

type startupParameter struct{ name, value string }

// readStartup reads packets up to the first that is not about encryption. It
// reads not a byte more than those, so that nothing that was sent in plain text
// can be taken for a part of what is encrypted.
func (b *Bouncer) readStartup(conn net.Conn) (*startup, error) {
	ssl, gss := false, false
	for {
		var head [8]byte
		n, err := io.ReadAtLeast(conn, head[:], 1)
		if err != nil {
			return nil, err
		}
		if _, encrypted := conn.(*tls.Conn); head[0] == 0x16 && !encrypted && !ssl {
			tc, err := b.acceptTLS(&rewound{Conn: conn, first: head[:n]}, conn, true)
			if err != nil {
				return nil, err
			}
			conn, ssl, gss = tc, true, true
			continue
		}
		if n < 4 {
			if _, err := io.ReadFull(conn, head[n:4]); err != nil {
				return nil, err
			}
			n = 4
		}
		if length := binary.BigEndian.Uint32(head[:]); length < 8 || length > maxStartup {
			return nil, fatal("08P01", "invalid length of startup packet")
		}
		if _, err := io.ReadFull(conn, head[n:]); err != nil {
			return nil, err
		}
		length, code := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
		body := make([]byte, length-8)
		switch {
		case code == sslCode && length == 8 && !ssl:
			ssl = true
			if b.config().ClientTLS.Mode == TLSDisable || conn.LocalAddr().Network() != "tcp" {
				if _, err := conn.Write([]byte{'N'}); err != nil {
					return nil, err
				}
				continue
			}
			if _, err := conn.Write([]byte{'S'}); err != nil {
				return nil, err
			}
			tc, err := b.acceptTLS(conn, conn, false)
			if err != nil {
				return nil, err
			}
			conn, gss = tc, true
			continue
		case code == gssCode && length == 8 && !gss:
			gss = true
			if _, err := conn.Write([]byte{'N'}); err != nil {
				return nil, err
			}
			continue
		}
		if _, err := io.ReadFull(conn, body); err != nil {
			return nil, err
		}
		if code == cancelCode {
			if len(body) < 8 || len(body) > 4+256 {
				return nil, fatal("08P01", "invalid length of cancel request")
			}
			return &startup{conn: conn, cancel: &cancelKey{pid: binary.BigEndian.Uint32(body), secret: string(body[4:])}}, nil
		}
		if code>>16 != 3 {
			return nil, fatal("0A000", "unsupported frontend protocol %d.%d: server supports 3.0 to 3.2", code>>16, code&0xffff)
		}
		s, err := parseStartup(int(code&0xffff), body)
		if s != nil {
			s.conn = conn
		}
		return s, err
	}
}

func (b *Bouncer) acceptTLS(conn, bare net.Conn, direct bool) (net.Conn, error) {
	t := b.config().ClientTLS
	if t.Mode == TLSDisable {
		return nil, errors.New("TLS is not configured")
	}
	cfg := t.Config.Clone()
	cfg.NextProtos = []string{"postgresql"}
	if t.Mode >= TLSVerifyCA {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	} else if cfg.ClientCAs != nil && cfg.ClientAuth == tls.NoClientCert {
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	raw := &rawConn{Conn: conn}
	tc := tls.Server(raw, cfg)
	if err := tc.Handshake(); err != nil {
		return nil, err
	}
	raw.Conn = bare // the first bytes are long read
	if direct && tc.ConnectionState().NegotiatedProtocol != "postgresql" {
		return nil, errors.New("direct TLS without the ALPN protocol postgresql")
	}
	return tc, nil
}

// A rewound connection gives its first bytes a second time.
type rewound struct {
	net.Conn
	first []byte
}

func (r *rewound) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// parseStartup reads a startup packet's parameters.
func parseStartup(minor int, body []byte) (*startup, error) {
	s := &startup{minor: minor}
	switch {
	case minor == 1:
		s.minor, s.negotiate = 0, true
	case minor > 2:
		s.minor, s.negotiate = 2, true
	}
	options := ""
	for {
		name, rest, ok := cstring(body)
		if !ok {
			return nil, fatal("08P01", "invalid startup packet layout: expected terminator as last byte")
		}
		if len(name) == 0 {
			if len(rest) > 0 {
				return nil, fatal("08P01", "invalid startup packet layout: expected terminator as last byte")
			}
			break
		}
		value, rest, ok := cstring(rest)
		if !ok {
			return nil, fatal("08P01", "invalid startup packet layout: expected terminator as last byte")
		}
		body = rest
		switch n, v := string(name), string(value); {
		case n == "user":
			s.user = v
		case n == "database":
			s.database = v
		case n == "replication":
			s.replication = v
		case n == "options":
			options = v
		case strings.HasPrefix(n, "_pq_."):
			s.negotiate = true
			s.unknown = append(s.unknown, n)
		default:
			s.others = append(s.others, startupParameter{n, v})
		}
	}
	if s.user == "" {
		return s, fatal("28000", "no PostgreSQL user name specified in startup packet")
	}
	if s.database == "" {
		s.database = s.user
	}
	more, err := parseOptions(options)
	if err != nil {
		return s, err
	}
	// A parameter of its own wins over one in options, as in PostgreSQL.
	s.others = append(more, s.others...)
	switch strings.ToLower(s.replication) {
	case "", "false", "off", "no", "0":
		s.replication = ""
	}
	return s, nil
}

// parseOptions reads command line options of PostgreSQL: -c name=value and
// --name=value, with backslashes before blanks that do not end a word.
func parseOptions(options string) (settings []startupParameter, err error) {
	var words []string
	var word []byte
	in := false
	for i := 0; i < len(options); i++ {
		switch ch := options[i]; {
		case ch == '\\' && i+1 < len(options):
			i++
			word, in = append(word, options[i]), true
		case ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r':
			if in {
				words, word, in = append(words, string(word)), word[:0], false
			}
		default:
			word, in = append(word, ch), true
		}
	}
	if in {
		words = append(words, string(word))
	}
	bad := fatal("08P01", "unsupported options startup parameter: only '-c config=val' and '--config=val' are allowed")
	for len(words) > 0 {
		var text string
		switch w := words[0]; {
		case w == "-c" && len(words) > 1:
			text, words = words[1], words[2:]
		case strings.HasPrefix(w, "-c") && len(w) > 2:
			text, words = w[2:], words[1:]
		case strings.HasPrefix(w, "--"):
			text, words = w[2:], words[1:]
		default:
			return nil, bad
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, bad
		}
		settings = append(settings, startupParameter{strings.ReplaceAll(name, "-", "_"), value})
	}
	return settings, nil
}

// apply takes the startup parameters over for a client.
func (c *client) apply(s *startup, w *welcome) *wireError {
	cfg := c.b.config()
	c.params = w.params
	for _, p := range s.others {
		lower := strings.ToLower(p.name)
		switch {
		case lower == shardParameter || lower == readOnlyParameter:
			(&localCommand{lower, p.value}).apply(c)
		case c.b.trackedIndex(p.name) >= 0:
			c.params.set(c.b, p.name, p.value)
		case slices.ContainsFunc(cfg.IgnoreParameters, func(i string) bool { return strings.EqualFold(i, p.name) }):
		default:
			return fatal("08P01", "unsupported startup parameter: %s", p.name)
		}
	}
	return nil
}

// negotiation returns a NegotiateProtocolVersion.
func (s *startup) negotiation() []byte {
	size := 8
	for _, name := range s.unknown {
		size += len(name) + 1
	}
	p := appendHeader(nil, 'v', size)
	p = binary.BigEndian.AppendUint32(p, uint32(3<<16|s.minor))
	p = binary.BigEndian.AppendUint32(p, uint32(len(s.unknown)))
	for _, name := range s.unknown {
		p = append(append(p, name...), 0)
	}
	return p
}
