package pgbounce

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// HBA are the rules of a pg_hba.conf: who may log in from where, and how. The
// first rule that fits a client decides; the zero HBA lets nobody in. It is
// safe for concurrent use, except with ParseIdent and ReadIdent.
//
//	local      databases  users           method  [map=name]
//	host       databases  users  address  method  [map=name]
//
// Beside host there are hostssl, hostnossl, hostgssenc (which never fits) and
// hostnogssenc. Databases are names, all, sameuser, replication (physical),
// and @file; users are names, all, and @file; several are joined by commas. A
// keyword in quotes is a name. An address is one with a mask, as /8 or as a
// second field, or all. Methods are trust, reject, md5, scram-sha-256,
// password, plain (which is password), cert (only of hostssl) and peer (only of
// local). Anything else, such as roles, host names and regular expressions, is
// an error and no rule that is passed over, for it might be one that rejects.
type HBA struct {
	rules []hbaRule
	maps  map[string][]identLine
}

type hbaRule struct {
	kind             string // "local", "host", "hostssl", …
	databases, users hbaNames
	prefix           netip.Prefix // the zero one is all addresses
	method           string       // as Auth.Type, or "reject" or "peer"
	ident            string       // the map, for peer and cert
}

// hbaNames is a field of a rule. As in PostgreSQL, all does not include
// physical replication.
type hbaNames struct {
	all, sameUser, replication bool
	names                      map[string]bool
}

// An identLine allows a user of the system to be one of the database.
type identLine struct {
	system, user string
	all          bool // not user, but any
}

// ParseHBA reads rules. Errors name the line. @file is for [ReadHBA].
func ParseHBA(r io.Reader) (*HBA, error) {
	h, err := parseHBA(r, "")
	if err != nil {
		return nil, fmt.Errorf("pgbounce: parse HBA: %w", err)
	}
	return h, nil
}

// ReadHBA reads the rules of a file. A relative @file is looked for beside it.
func ReadHBA(path string) (*HBA, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pgbounce: read HBA: %w", err)
	}
	defer f.Close()
	h, err := parseHBA(f, path)
	if err != nil {
		return nil, fmt.Errorf("pgbounce: read HBA: %s: %w", path, err)
	}
	return h, nil
}

// ParseIdent replaces the maps that rules name with map=. Lines are
//
//	map  system-user  database-user
//
// where the last may be all. Without its map, a rule lets nobody in.
func (h *HBA) ParseIdent(r io.Reader) error {
	if err := h.parseIdent(r); err != nil {
		return fmt.Errorf("pgbounce: parse ident maps: %w", err)
	}
	return nil
}

// ReadIdent is ParseIdent of a file.
func (h *HBA) ReadIdent(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("pgbounce: read ident maps: %w", err)
	}
	defer f.Close()
	if err := h.parseIdent(f); err != nil {
		return fmt.Errorf("pgbounce: read ident maps: %s: %w", path, err)
	}
	return nil
}

// match returns how a client is to log in, and for peer and cert the map that
// [HBA.allows] takes. It reports false if no rule fits, which means no.
// The flag replication is for physical replication only.
func (h *HBA) match(database, user string, addr net.Addr, tls, replication bool) (method, ident string, ok bool) {
	local, ip := hbaAddress(addr)
	for _, r := range h.rules {
		if r.hasAddress(local, ip, tls) &&
			r.databases.has(database, database == user, replication) &&
			r.users.has(user, false, false) {
			return r.method, r.ident, true
		}
	}
	return "", "", false
}

// hbaAddress returns the address without a zone, and an IPv4 one that came
// through an IPv6 socket as what it is.
func hbaAddress(addr net.Addr) (local bool, ip netip.Addr) {
	switch a := addr.(type) {
	case *net.UnixAddr:
		return true, netip.Addr{}
	case *net.TCPAddr:
		return false, a.AddrPort().Addr().Unmap().WithZone("")
	}
	return false, netip.Addr{}
}

func (r *hbaRule) hasAddress(local bool, ip netip.Addr, tls bool) bool {
	switch r.kind {
	case "local":
		return local
	case "hostssl":
		if !tls {
			return false
		}
	case "hostnossl":
		if tls {
			return false
		}
	case "hostgssenc": // we never have it
		return false
	}
	return ip.IsValid() && (!r.prefix.IsValid() || r.prefix.Contains(ip))
}

func (n *hbaNames) has(name string, sameUser, replication bool) bool {
	if replication {
		return n.replication
	}
	return n.all || n.sameUser && sameUser || n.names[name]
}

// allows tells whether who the system or a certificate says that a client is
// may be a user: the one of the same name if there is no map.
func (h *HBA) allows(ident, system, user string) bool {
	if ident == "" {
		return system == user
	}
	return slices.ContainsFunc(h.maps[ident], func(l identLine) bool {
		return l.system == system && (l.all || l.user == user)
	})
}

func parseHBA(r io.Reader, path string) (*HBA, error) {
	h := &HBA{}
	err := hbaLines(r, func(fields [][]hbaToken) error {
		rule, err := parseHBARule(fields, path)
		h.rules = append(h.rules, rule)
		return err
	})
	return h, err
}

func (h *HBA) parseIdent(r io.Reader) error {
	maps := map[string][]identLine{}
	err := hbaLines(r, func(fields [][]hbaToken) error {
		var words [3]hbaToken
		if len(fields) != len(words) {
			return errors.New("want a map, a system user and a database user")
		}
		for i, f := range fields {
			if len(f) != 1 {
				return fmt.Errorf("want one name, not %d, in field %d", len(f), i+1)
			}
			words[i] = f[0]
		}
		for _, w := range words[1:] {
			if err := w.checkName(); err != nil {
				return err
			}
		}
		name := words[0].text
		maps[name] = append(maps[name], identLine{words[1].text, words[2].text, words[2].is("all")})
		return nil
	})
	if err == nil {
		h.maps = maps
	}
	return err
}

func parseHBARule(fields [][]hbaToken, path string) (hbaRule, error) {
	var r hbaRule
	next := func() (f []hbaToken) {
		if len(fields) > 0 {
			f, fields = fields[0], fields[1:]
		}
		return f
	}
	word := func(what string) (string, error) {
		f := next()
		if len(f) != 1 {
			return "", fmt.Errorf("want one %s, not %d", what, len(f))
		}
		return f[0].text, nil
	}
	var err error
	if r.kind, err = word("type"); err != nil {
		return r, err
	}
	switch r.kind {
	case "local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc":
	default:
		return r, fmt.Errorf("unknown type %q", r.kind)
	}
	if r.databases, err = parseHBANames(next(), "database", path); err != nil {
		return r, err
	}
	if r.users, err = parseHBANames(next(), "user", path); err != nil {
		return r, err
	}
	if r.kind != "local" {
		text, err := word("address")
		if err != nil {
			return r, err
		}
		mask := ""
		if text != "all" && !strings.Contains(text, "/") {
			if mask, err = word("mask"); err != nil {
				return r, err
			}
		}
		if r.prefix, err = parseHBAAddress(text, mask); err != nil {
			return r, err
		}
	}
	if r.method, err = word("method"); err != nil {
		return r, err
	}
	switch r.method {
	case "trust", "reject", "md5", "scram-sha-256", "plain":
	case "password":
		r.method = "plain"
	case "peer":
		if r.kind != "local" {
			return r, errors.New("method peer is for local only")
		}
	case "cert":
		if r.kind != "hostssl" {
			return r, errors.New("method cert is for hostssl only")
		}
	default:
		return r, fmt.Errorf("unknown method %q", r.method)
	}
	for len(fields) > 0 {
		option, err := word("option")
		if err != nil {
			return r, err
		}
		name, value, _ := strings.Cut(option, "=")
		if name != "map" || value == "" || r.method != "peer" && r.method != "cert" {
			return r, fmt.Errorf("unknown option %q of method %s", name, r.method)
		}
		r.ident = value
	}
	return r, nil
}

// parseHBAAddress returns the zero Prefix for all.
func parseHBAAddress(text, mask string) (netip.Prefix, error) {
	if text == "all" {
		return netip.Prefix{}, nil
	}
	bad := fmt.Errorf("want an address with a mask, not %q", strings.TrimSpace(text+" "+mask))
	p, err := netip.ParsePrefix(text)
	if mask != "" {
		addr, err1 := netip.ParseAddr(text)
		m, err2 := netip.ParseAddr(mask)
		bits, ok := maskBits(addr, m)
		if err1 != nil || err2 != nil || !ok {
			return p, bad
		}
		p, err = addr.WithZone("").Prefix(bits)
	}
	if err != nil {
		return p, bad
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked(), nil
	}
	return p.Masked(), nil
}

func parseHBANames(tokens []hbaToken, what, path string) (hbaNames, error) {
	n := hbaNames{names: map[string]bool{}}
	if len(tokens) == 0 {
		return n, fmt.Errorf("no %s", what)
	}
	return n, n.add(tokens, what, path, 0)
}

// hbaDepth is how deep an @file may name another.
const hbaDepth = 10

func (n *hbaNames) add(tokens []hbaToken, what, path string, depth int) error {
	for _, t := range tokens {
		isDatabase := what == "database"
		file, isFile := strings.CutPrefix(t.text, "@")
		switch {
		case t.is("all"):
			n.all = true
		case isDatabase && t.is("sameuser"):
			n.sameUser = true
		case isDatabase && t.is("replication"):
			n.replication = true
		case isDatabase && (t.is("samerole") || t.is("samegroup")):
			return fmt.Errorf("%s is not supported", t.text)
		case isFile && !t.quoted:
			if err := n.addFile(file, what, path, depth+1); err != nil {
				return fmt.Errorf("%s: %w", t.text, err)
			}
		default:
			if err := t.checkName(); err != nil {
				return err
			}
			n.names[t.text] = true
		}
	}
	return nil
}

func (n *hbaNames) addFile(file, what, path string, depth int) error {
	switch {
	case path == "":
		return errors.New("a file is only found from within a file")
	case depth > hbaDepth:
		return errors.New("files name each other")
	case !filepath.IsAbs(file):
		file = filepath.Join(filepath.Dir(path), file)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return hbaLines(f, func(fields [][]hbaToken) error {
		return n.add(slices.Concat(fields...), what, file, depth)
	})
}
