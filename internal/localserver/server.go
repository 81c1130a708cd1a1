package localserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyTimeout = time.Minute             // for a start, or one tool such as initdb
	grace        = 5 * time.Second         // between asking to stop and SIGKILL
	poll         = 3 * time.Millisecond    // between two looks at a condition
	pingTimeout  = time.Second             // for one try to reach a server
	logTail      = 4 << 10                 // bytes of a log that an error shows
	portTries    = 20                      // ports to try before giving up
	portInUse    = "ddress already in use" // all kinds print it, with a or A
)

// A Server is one server in a process of its own. It is safe for concurrent
// use; calls that change its state wait for one another.
type Server struct {
	host    *Host
	kind    Kind
	name    string
	binary  string
	dir     string
	account *account

	// What differs between the kinds. Those that may be nil say so.
	clean     func() error // nil, or runs before each start
	configure func() error // nil, or runs whenever the port is new
	args      func() []string
	ping      func(ctx context.Context, pid int) error
	follow    func(ctx context.Context) error // nil, or succeeds when it is in step with others

	mu      sync.Mutex // held while the state changes
	process *process   // nil before the first start

	portMu sync.Mutex // apart from mu: addresses are asked for during a start
	port   int        // 0 until chosen
}

// A process is one life of a server.
type process struct {
	pid   int
	done  chan struct{}    // closed at the end
	state *os.ProcessState // valid then: how it ended
}

// Kind returns what the server is.
func (s *Server) Kind() Kind { return s.kind }

// Name returns the name that the server was started with.
func (s *Server) Name() string { return s.name }

// Port returns the TCP port of the server. It stays the same for the life of
// the Server.
func (s *Server) Port() int {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	return s.port
}

func (s *Server) setPort(port int) {
	s.portMu.Lock()
	defer s.portMu.Unlock()
	s.port = port
}

// Addr returns the address of the server as host:port.
func (s *Server) Addr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port()))
}

// Log returns the end of what the server has printed.
func (s *Server) Log() string {
	return s.logSince(0)
}

func (s *Server) logSince(offset int64) string {
	f, err := os.Open(s.logPath())
	if err != nil {
		return ""
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	offset = max(offset, size-logTail)
	text, _ := io.ReadAll(io.NewSectionReader(f, offset, size-offset))
	return strings.TrimSpace(string(text))
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "log") }
func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

// makeFolder makes the folder of the server and gives it to its user.
func (s *Server) makeFolder() error {
	var err error
	if s.account, err = accountFor(s.kind); err != nil {
		return err
	}
	if err := s.account.reaches(s.host.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	// A server of ours that outlived both us and the guard would fight with
	// the new one for the folder.
	if err := s.killAll(nil); err != nil {
		return err
	}
	return s.account.own(s.dir)
}

// command builds the command line for a program of this server.
func (s *Server) command(binary string, args ...string) (*exec.Cmd, *os.File, error) {
	log, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(binary, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + s.dir}
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, log, nil
}

// spawn starts a program of this server.
func (s *Server) spawn(binary string, args ...string) (*process, error) {
	cmd, log, err := s.command(binary, args...)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := s.host.launcher.start(cmd, s.account); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		cmd.Wait() // an error only repeats the state
		p.state = cmd.ProcessState
	}()
	return p, nil
}

// runTool runs a program to its end, such as initdb.
func (s *Server) runTool(ctx context.Context, binary string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	offset := s.logSize()
	p, err := s.spawn(binary, args...)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done
		return fmt.Errorf("%s: %w", filepath.Base(binary), ctx.Err())
	}
	if !p.state.Success() {
		return fmt.Errorf("%s: %s\n%s", filepath.Base(binary), p.state, s.logSince(offset))
	}
	return nil
}

func (s *Server) logSize() int64 {
	info, err := os.Stat(s.logPath())
	if err != nil {
		return 0
	}
	return info.Size()
}

// errPortInUse is why a start may be tried again on another port.
var errPortInUse = errors.New("port is in use")

// startLocked starts the process and waits until it answers. A server without
// a port gets one.
func (s *Server) startLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if s.Port() != 0 {
		return s.tryStart(ctx)
	}
	err := errPortInUse
	for try := 0; try < portTries && errors.Is(err, errPortInUse); try++ {
		if err = s.choosePort(); err == nil {
			err = s.tryStart(ctx)
		}
	}
	return err
}

func (s *Server) choosePort() error {
	port, err := s.host.freePort()
	if err != nil {
		return err
	}
	s.setPort(port)
	if s.configure != nil {
		return s.configure()
	}
	return nil
}

func (s *Server) tryStart(ctx context.Context) error {
	if s.clean != nil {
		if err := s.clean(); err != nil {
			return err
		}
	}
	offset := s.logSize()
	p, err := s.spawn(s.binary, s.args()...)
	if err != nil {
		return err
	}
	s.process = p
	for {
		select {
		case <-p.done:
			log := s.logSince(offset)
			if strings.Contains(log, portInUse) {
				return fmt.Errorf("%w: %s", errPortInUse, s.Addr())
			}
			return fmt.Errorf("ended before it was ready: %s\n%s", p.state, log)
		case <-ctx.Done():
			err = fmt.Errorf("not ready: %w\n%s", errors.Join(ctx.Err(), err), s.logSince(offset))
			return errors.Join(err, s.killLocked())
		default:
		}
		if err = s.tryPing(ctx, p); err == nil {
			return nil
		}
		wait(ctx, p.done)
	}
}

// await tries until it succeeds, as long as the server runs.
func (s *Server) await(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || s.process.ended() {
			return fmt.Errorf("%w\n%s", errors.Join(ctx.Err(), err), s.Log())
		}
		wait(ctx, s.process.done)
	}
}

// tryPing pings once. It gives up when the process ends: who holds the port
// then may be silent for ever.
func (s *Server) tryPing(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return s.ping(ctx, p.pid)
}

// wait lets a little time pass, less if the context or the process ends.
func wait(ctx context.Context, done <-chan struct{}) {
	t := time.NewTimer(poll)
	defer t.Stop()
	select {
	case <-t.C:
	case <-done:
	case <-ctx.Done():
	}
}

// freePort returns a port that nobody listens on. It takes one below 32768,
// where Linux begins with the ports of outgoing connections: one of those
// could take the port of a server that is down, and a client that dials such
// a port on its own machine can even end up connected to itself.
func freePort() (int, error) {
	for range 1000 {
		port := 16384 + rand.IntN(16384)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port")
}
