package pgbounce

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A File is what a pgbouncer.ini says: a Config, and what a program needs that
// listens, logs and runs in the background by it. ReadINI makes one. A File
// must not be changed by Set while others read it.
type File struct {
	// Config is for New and Reload. Nothing in it is left to Config's own
	// defaults: what the file does not name is as in PgBouncer.
	Config Config

	// Path is where the file was read, and will be read again.
	Path string

	// ListenAddrs are addresses and host names to listen at, "*" being all.
	// With none there is only the Unix socket.
	ListenAddrs []string

	// Port is that of TCP, and the end of the Unix socket's name.
	Port int

	// Backlog is how many connections may wait to be accepted.
	Backlog int

	// ReusePort lets several processes listen at the same address.
	ReusePort bool

	// UnixDir is the folder of the Unix socket, "" for no socket. With "@" in
	// front it has no file. Databases without a host are looked for there too.
	UnixDir string

	// UnixMode and UnixGroup say who may use the Unix socket. Without a group
	// the file has that of the process.
	UnixMode  fs.FileMode
	UnixGroup string

	// KeepAlive is how clients that are gone are noticed. Where its numbers are
	// negative, the system's are left.
	KeepAlive net.KeepAliveConfig

	// DeferAccept is for how many seconds the kernel keeps a connection back
	// until its client has sent something. 0 is off, 1 the kernel's own time.
	DeferAccept int

	// SocketBuffer is the size of the kernel's buffers for a client in bytes,
	// and UserTimeout how long what was sent to it may stay unconfirmed. 0
	// leaves the system's.
	SocketBuffer int
	UserTimeout  time.Duration

	// User is whom the process becomes. PIDFile is where it leaves its number.
	User    string
	PIDFile string

	// LogFile, and Syslog under a name and facility, are where the log goes
	// beside the standard error. Verbose is how much more is logged.
	LogFile        string
	Syslog         bool
	SyslogIdent    string
	SyslogFacility string
	Verbose        int

	// LogStats writes the Stats to the log every StatsPeriod, unless that is
	// negative.
	LogStats    bool
	StatsPeriod time.Duration

	// MetricsAddr is where metrics are served, "" for nowhere.
	MetricsAddr string

	// ShardCatalog is the DSN of the catalog of shards. It may hold a password.
	ShardCatalog string

	// Warnings name what the file asks for and does not get.
	Warnings []string

	authFile, hbaFile, identFile    string
	clientFiles, serverFiles        tlsFiles
	quietConnects, quietDisconnects bool
}

const (
	// maxIncludeDepth is PgBouncer's. It lets a file that includes itself twice
	// still be read a thousand times, hence the other.
	maxIncludeDepth = 10
	maxIncludes     = 1000
)

// ReadINI reads a pgbouncer.ini and the files it names: those of %include,
// users, rules and certificates. Names that are not absolute are relative to
// the current directory, not to the file, as PgBouncer has them.
//
// What PgBouncer does not know is an error. What it knows and pgbounce does not
// do is left out and named in Warnings. An error names file, line and key, but
// not the value of one that may hold a secret.
func ReadINI(path string) (File, error) {
	f, err := parseINI(path, os.ReadFile)
	if err == nil {
		err = f.load()
	}
	if err != nil {
		return File{}, fmt.Errorf("pgbounce: read ini: %w", err)
	}
	return f, nil
}

// Keep takes over from the File that a process runs by what only a new process
// can change, and names the settings that differed.
func (f *File) Keep(running *File) []string {
	var names []string
	for _, k := range iniKeys {
		if !k.fixed || k.why != "" || k.get(f) == k.get(running) {
			continue
		}
		names = append(names, k.name)
		if err := k.assign(f, k.get(running)); err != nil {
			panic("bug: " + err.Error())
		}
	}
	return names
}

// parseINI reads all but the files of users, rules and certificates.
func parseINI(path string, read func(string) ([]byte, error)) (File, error) {
	p := iniParser{read: read}
	p.f.Config.Databases = map[string]Database{}
	p.f.setDefaults(true)
	if err := p.file(path, 0); err != nil {
		return File{}, err
	}
	if !p.main {
		return File{}, fmt.Errorf("%s: no section [pgbouncer]", path)
	}
	p.f.Path = path
	for _, name := range slices.Sorted(maps.Keys(p.f.Config.Databases)) {
		db := p.f.Config.Databases[name]
		if len(db.Hosts) > 0 {
			continue
		}
		if p.f.UnixDir == "" {
			return File{}, fmt.Errorf("%s: database %s has no host, and unix_socket_dir is empty", path, name)
		}
		db.Hosts = []string{p.f.UnixDir}
		p.f.Config.Databases[name] = db
	}
	return p.f, nil
}

// load reads the files of users, rules and certificates.
func (f *File) load() error {
	for _, load := range []func(*File) error{(*File).loadSecrets, (*File).loadHBA, (*File).loadClientTLS, (*File).loadServerTLS} {
		if err := load(f); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) loadSecrets() error {
	if f.authFile == "" || f.Config.Auth.Type == "any" {
		return nil
	}
	text, err := os.ReadFile(f.authFile)
	if err != nil {
		return fmt.Errorf("auth_file: %w", err)
	}
	f.Config.Auth.Secrets, err = ParseSecrets(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("auth_file: %s: %w", f.authFile, err)
	}
	return nil
}

func (f *File) loadHBA() error {
	if f.Config.Auth.Type != "hba" || f.hbaFile == "" && f.Config.Auth.HBA != nil {
		return nil
	}
	if f.hbaFile == "" {
		return errors.New("auth_type is hba: want auth_hba_file")
	}
	rules, err := ReadHBA(f.hbaFile)
	if err != nil {
		return fmt.Errorf("auth_hba_file: %w", err)
	}
	if f.identFile != "" {
		if err := rules.ReadIdent(f.identFile); err != nil {
			return fmt.Errorf("auth_ident_file: %w", err)
		}
	}
	f.Config.Auth.HBA = rules
	return nil
}

// An iniParser fills a File.
type iniParser struct {
	f        File
	read     func(string) ([]byte, error)
	at       string // file and line
	includes int
	section  string
	main     bool // there was a [pgbouncer]
}

func (p *iniParser) warn(text string) {
	p.f.Warnings = append(p.f.Warnings, p.at+": "+text)
}

func (p *iniParser) file(path string, depth int) error {
	text, err := p.read(path)
	if err != nil {
		return err
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		p.at = fmt.Sprintf("%s:%d", path, n)
		if err := p.line(strings.TrimSpace(string(line)), depth); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	return nil
}

func (p *iniParser) line(line string, depth int) error {
	switch {
	case line == "" || line[0] == ';' || line[0] == '#':
		return nil
	case strings.ContainsRune(line, 0):
		return errors.New("a zero byte")
	case line[0] == '[':
		name, rest, ok := strings.Cut(line[1:], "]")
		if !ok {
			return errors.New("a section without ]")
		}
		if err := p.begin(name); err != nil {
			return err
		}
		return p.line(strings.TrimSpace(rest), depth)
	}
	if rest, ok := strings.CutPrefix(line, "%include"); ok && strings.TrimLeft(rest, " \t") != rest {
		p.includes++
		if depth == maxIncludeDepth || p.includes > maxIncludes {
			return errors.New("%include goes too deep")
		}
		return p.file(strings.TrimSpace(rest), depth+1)
	}
	key, value, err := cutKey(line)
	if err != nil {
		return err
	}
	return p.key(key, value)
}

// begin starts a section. Like PgBouncer's, a second [pgbouncer] takes back
// what the first one said.
func (p *iniParser) begin(name string) error {
	switch name {
	case "pgbouncer":
		if p.main {
			p.warn("[pgbouncer] comes again, which makes all of its keys above void, as in PgBouncer")
		}
		p.main = true
		p.f.setDefaults(false)
	case "databases", "users", "peers", "pgbounce":
	default:
		return fmt.Errorf("unknown section [%s]", name)
	}
	p.section = name
	return nil
}

func (p *iniParser) key(key, value string) error {
	switch p.section {
	case "databases":
		return p.database(key, value)
	case "users":
		return p.user(key, value)
	case "peers":
		return p.peer(key, value)
	case "":
		return fmt.Errorf("key %s is before the first section", key)
	}
	k := findKey(key)
	switch {
	case k == nil:
		return fmt.Errorf("unknown key %s in [%s]", key, p.section)
	case k.own != (p.section == "pgbounce"):
		return fmt.Errorf("key %s in [%s]: it belongs into the other section", key, p.section)
	case k.why != "":
		if !sameValue(value, k.def) {
			p.warn(key + " has no effect: " + k.why)
		}
		return nil
	}
	err := k.assign(&p.f, value)
	if _, ok := errors.AsType[iniWarning](err); ok {
		p.warn(err.Error())
		return nil
	}
	return err
}

// An iniWarning is returned for a value that is left out.
type iniWarning string

func (w iniWarning) Error() string { return string(w) }

// cutKey takes a line apart at its "=". Names with characters other than
// PgBouncer's own need quotes: single ones in its code, double ones in its
// manual.
func cutKey(line string) (key, value string, err error) {
	rest := line
	switch quote := line[0]; quote {
	case '\'', '"':
		key, rest, err = unquote(line[1:], quote)
		if err != nil {
			return "", "", errors.New("a key with no end to its quotes")
		}
	default:
		end := strings.IndexFunc(line, func(r rune) bool { return !isKeyRune(r) })
		if end < 0 {
			end = len(line)
		}
		key, rest = line[:end], line[end:]
	}
	value, ok := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
	if key == "" || !ok {
		return "", "", errors.New("want key = value")
	}
	return key, strings.TrimSpace(value), nil
}

func isKeyRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("_.-*", r)
}

// unquote returns what is before the closing quote, where a doubled one
// stands for itself, and what is behind it.
func unquote(s string, quote byte) (value, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == quote {
			if i+1 == len(s) || s[i+1] != quote {
				return b.String(), s[i+1:], nil
			}
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", errors.New("no end to its quotes")
}

// sameValue tells whether two values of an unsupported key mean the same.
func sameValue(a, b string) bool {
	if a == b {
		return true
	}
	x, err := strconv.ParseFloat(a, 64)
	y, err2 := strconv.ParseFloat(b, 64)
	return err == nil && err2 == nil && x == y
}
