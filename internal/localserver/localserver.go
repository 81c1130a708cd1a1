// Package localserver starts real PostgreSQL, PgBouncer, Redis and memcached
// servers as child processes of this one.
//
// # Problem
//
// Tests and the example need servers that behave like the ones in production,
// that can be killed, paused and restarted, and that never stay behind. Doing
// it by hand means finding binaries that are not on PATH, users that refuse
// to be root, ports that are taken, and children that outlive a killed parent.
//
// # Scheme
//
//	Host ── Config.Dir            0711, locked by one process at a time (.lock)
//	  ├── db-1/                   0700, owned by the server's user
//	  │     ├── log               what the server printed
//	  │     └── data/             its files
//	  └── cache/ ...
//
//	our process ──┬── servers     killed by the kernel when we die
//	              └── guard       a shell that then kills what they left
//
// Programs come from the newest /usr/lib/postgresql/*/bin, then PATH, then
// /usr/sbin. A process that is root runs PostgreSQL as the user postgres and
// the rest as nobody; any other process runs them as itself. Every server
// listens on 127.0.0.1 only, without a password, on a free port below the
// range the system uses for outgoing connections.
//
// # Guarantees
//
// A server is returned once it, and not another process on its port, has
// answered in its own protocol. [Host.Close] stops all servers in reverse
// order and waits for them. If our process dies in any way, kill -9 included,
// the servers die with it, also the paused ones. Folders of such a process
// are removed by the next [Open] of a temporary folder.
//
// Not guaranteed: that a port is the same in the next process that opens the
// folder, and any protection from other users of this machine. Linux only for
// what concerns dying parents; elsewhere Close is the only thing that stops
// every process of a server.
//
// # Cost
//
// On two cores under load a new PostgreSQL takes 1.1 s, or 2.2 s if it must
// be durable (BenchmarkNewPostgres); to stop and start one takes 55 ms, a
// PgBouncer 340 ms, a Redis 110 ms, a memcached 15 ms (BenchmarkRestart); a new
// Redis Cluster takes 2.1 s (BenchmarkNewRedisCluster), for its nodes wait that
// long before they take writes. The folder of a new PostgreSQL has 29 MB if
// [Config].Fast is set and 39 MB otherwise.
//
// # Failure
//
// A server that ends before it answers is an error at once, with the end of
// its log. A program that is missing is a [*MissingError], one that is too old
// a [*VersionError], a folder in use an [*InUseError].
package localserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
)

// ErrClosed is returned when a server is started on a closed [Host].
var ErrClosed = errors.New("localserver: host is closed")

// Config says where a [Host] keeps its servers and how they run. The zero
// value is a durable host in a temporary folder.
type Config struct {
	// Dir is the folder that holds one folder per server. It is made if it
	// does not exist, and kept by Close.
	// Default: a new temporary folder, removed by Close.
	Dir string

	// Fast turns durability off: no fsync in PostgreSQL, nothing on disk in
	// Redis. A crash of the machine may then lose everything, and a restart
	// of Redis does. For tests only.
	Fast bool

	// Path lists the folders to search for the programs.
	// Default: the system's, as the package comment says.
	Path []string

	// Ready, if set, is called each time a server has become ready, with the
	// time this took. It must not call methods that change the state of the
	// server. Calls may come from several goroutines at once.
	// Default: nil.
	Ready func(s *Server, took time.Duration)
}

// A Host owns a folder and the servers in it. It is safe for concurrent use:
// servers may be started in parallel.
type Host struct {
	cfg       Config
	dir       string
	temporary bool
	lock      *os.File
	launcher  *launcher
	guard     io.Closer
	freePort  func() (int, error)

	closed sync.Once
	err    error // of Close

	mu      sync.Mutex
	closing bool
	servers []*Server // in order of their start
}

var _ io.Closer = (*Host)(nil)

// Open prepares a folder for servers and locks it. It starts none, but a
// guard process that ends with the Host.
func Open(cfg Config) (*Host, error) {
	h, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("localserver: open: %w", err)
	}
	return h, nil
}

func open(cfg Config) (*Host, error) {
	h := &Host{cfg: cfg, temporary: cfg.Dir == "", freePort: freePort}
	var err error
	if h.temporary {
		sweep()
		h.dir, h.lock, err = makeTemporary()
	} else {
		h.dir, h.lock, err = makeFolder(cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	if h.guard, err = startGuard(h.dir, h.lock); err != nil {
		unlock(h.lock)
		return nil, fmt.Errorf("start guard: %w", err)
	}
	h.launcher = newLauncher(h)
	return h, nil
}

// Dir returns the folder of the host.
func (h *Host) Dir() string { return h.dir }

// Servers returns the servers of the host in the order of their start.
func (h *Host) Servers() []*Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.servers)
}

// Close stops all servers in reverse order of their start, waits for them,
// and removes a temporary folder. It first waits for starts in progress: end
// their contexts to hurry them. Further calls return the same error.
func (h *Host) Close() error {
	h.closed.Do(func() {
		h.mu.Lock()
		h.closing = true
		h.mu.Unlock()

		var errs []error
		for _, s := range slices.Backward(h.Servers()) {
			errs = append(errs, s.Stop(context.Background()))
		}
		h.launcher.close()
		errs = append(errs, h.guard.Close())
		if h.temporary {
			errs = append(errs, removeFolder(h.dir))
		}
		errs = append(errs, unlock(h.lock))
		h.err = errors.Join(errs...)
	})
	return h.err
}

// validName keeps a name usable as a folder, and short in a path.
var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)

// add starts a new server: it makes the folder, calls setUp for what happens
// once in the life of the folder, starts the process and waits until it
// answers. The caller has filled in what differs between the kinds.
func (h *Host) add(ctx context.Context, s *Server, kind Kind, name string, setUp func(context.Context) error) error {
	if err := h.enter(s, kind, name); err != nil {
		return fmt.Errorf("localserver: start %s %s: %w", kind, name, err)
	}
	defer s.mu.Unlock()
	begin := time.Now()
	err := s.makeFolder()
	if err == nil {
		err = setUp(ctx)
	}
	if err == nil {
		err = s.startLocked(ctx)
	}
	if err == nil && s.follow != nil {
		err = s.await(ctx, s.follow)
	}
	if err != nil {
		err = errors.Join(err, s.killLocked())
		h.remove(s)
		return fmt.Errorf("localserver: start %s %s: %w", kind, name, err)
	}
	h.ready(s, begin)
	return nil
}

func (h *Host) ready(s *Server, begin time.Time) {
	if h.cfg.Ready != nil {
		h.cfg.Ready(s, time.Since(begin))
	}
}

// enter takes the name, so that two starts cannot share a folder, and locks
// the server, so that Close waits for the start.
func (h *Host) enter(s *Server, kind Kind, name string) error {
	if !validName.MatchString(name) {
		return errors.New("a name is 1 to 40 of a-z, 0-9, _ and -, and does not begin with _ or -")
	}
	binary, err := find(kind, 0, h.cfg.Path)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return ErrClosed
	}
	for _, other := range h.servers {
		if other.name == name {
			return errors.New("the name is taken")
		}
	}
	s.host, s.kind, s.name, s.binary = h, kind, name, binary
	s.dir = filepath.Join(h.dir, name)
	s.mu.Lock()
	h.servers = append(h.servers, s)
	return nil
}

func (h *Host) remove(s *Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.servers = slices.DeleteFunc(h.servers, func(o *Server) bool { return o == s })
}
