package localserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Kind is a kind of server.
type Kind string

// The kinds of server that a [Host] can start.
const (
	KindPostgres  Kind = "postgres"
	KindPgBouncer Kind = "pgbouncer"
	KindRedis     Kind = "redis"
	KindSentinel  Kind = "sentinel"
	KindMemcached Kind = "memcached"
)

// A program is what a kind of server needs from the machine.
type program struct {
	binary  string
	version *regexp.Regexp // of what --version prints: major, minor
	oldest  [2]int         // major, minor
	install string         // the Debian package
	account string         // the user it runs as if we are root
	stop    syscall.Signal // asks it to end in good order
}

var redisProgram = program{
	binary:  "redis-server",
	version: regexp.MustCompile(`^(?:Redis|Valkey) server v=(\d+)\.(\d+)`),
	oldest:  [2]int{7, 0},
	install: "redis-server",
	account: "nobody",
	stop:    syscall.SIGTERM,
}

var programs = map[Kind]program{
	KindPostgres: {
		binary:  "postgres",
		version: regexp.MustCompile(`^postgres \(PostgreSQL\) (\d+)(?:\.(\d+))?`),
		oldest:  [2]int{15, 0},
		install: "postgresql",
		account: "postgres",
		stop:    syscall.SIGINT, // SIGTERM waits until all clients have left
	},
	KindPgBouncer: {
		binary:  "pgbouncer",
		version: regexp.MustCompile(`^PgBouncer (\d+)\.(\d+)`),
		oldest:  [2]int{1, 18},
		install: "pgbouncer",
		account: "nobody",
		stop:    syscall.SIGINT, // SIGTERM waits, from 1.23 on, until all clients have left
	},
	KindRedis:    redisProgram,
	KindSentinel: redisProgram,
	KindMemcached: {
		binary:  "memcached",
		version: regexp.MustCompile(`^memcached (\d+)\.(\d+)`),
		oldest:  [2]int{1, 6},
		install: "memcached",
		account: "nobody",
		stop:    syscall.SIGTERM,
	},
}

// A MissingError says that a program is not installed.
type MissingError struct {
	Binary  string // "redis-server"
	Version string // the version that has to be installed, "" if any recent one
	Install string // the Debian package that has it
}

func (e *MissingError) Error() string {
	name := e.Binary
	if e.Version != "" {
		name += " " + e.Version
	}
	return fmt.Sprintf("%s is not installed (on Debian: apt-get install %s)", name, e.Install)
}

// A VersionError says that a program is too old, or not what its name says.
type VersionError struct {
	Binary string // its path
	Found  string // its version, or what it printed instead
	Want   string // the oldest version that will do
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s is version %q, want %s or later", e.Binary, e.Found, e.Want)
}

// Available reports as an error which of the programs of the given kinds are
// missing ([*MissingError]) or unfit ([*VersionError]) on this machine.
func Available(kinds ...Kind) error {
	var errs []error
	for _, kind := range kinds {
		if _, err := find(kind, 0, nil); err != nil {
			errs = append(errs, fmt.Errorf("localserver: %w", err))
		}
	}
	return errors.Join(errs...)
}

// find returns the path of the program for a kind, of the given major version
// unless that is 0.
func find(kind Kind, major int, path []string) (string, error) {
	p := programs[kind]
	if path == nil {
		path = systemPath()
	}
	var unfit error
	for _, dir := range path {
		file := filepath.Join(dir, p.binary)
		if info, err := os.Stat(file); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			continue
		}
		found, err := versionOf(file, p)
		switch {
		case err != nil:
			unfit = cmp.Or(unfit, err)
		case major == 0 || major == found:
			return file, nil
		}
	}
	if unfit != nil {
		return "", unfit
	}
	missing := &MissingError{Binary: p.binary, Install: p.install}
	if major != 0 {
		missing.Version = strconv.Itoa(major)
		missing.Install += "-" + missing.Version
	}
	return "", missing
}

// systemPath lists where programs are, best first. Debian keeps those of
// PostgreSQL out of PATH, and a user's PATH often lacks /usr/sbin.
func systemPath() []string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	newestFirst(dirs)
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	return append(dirs, "/usr/sbin")
}

// newestFirst sorts folders such as /usr/lib/postgresql/15/bin: 15 before 9.
func newestFirst(dirs []string) {
	major := func(dir string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		return n
	}
	slices.SortFunc(dirs, func(a, b string) int { return cmp.Compare(major(b), major(a)) })
}

// versionOf returns the major version of a program that is recent enough.
func versionOf(file string, p program) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "--version").Output()
	text := strings.TrimSpace(string(out))
	bad := &VersionError{
		Binary: file,
		Found:  text[:min(len(text), 80)],
		Want:   fmt.Sprintf("%d.%d", p.oldest[0], p.oldest[1]),
	}
	if err != nil {
		bad.Found = err.Error()
		return 0, bad
	}
	match := p.version.FindStringSubmatch(text)
	if match == nil {
		return 0, bad
	}
	major, _ := strconv.Atoi(match[1])
	minor, _ := strconv.Atoi(match[2])
	if found := [2]int{major, minor}; slices.Compare(found[:], p.oldest[:]) < 0 {
		bad.Found = strings.Trim(match[1]+"."+match[2], ".")
		return 0, bad
	}
	return major, nil
}
