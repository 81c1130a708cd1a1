//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// asMain makes this test binary the command.
const asMain = "PGBOUNCE_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
	}
	testserver.Main(m, testserver.NeedPostgres)
}

// A folder is where a test has its files and its port.
type folder struct {
	dir  string
	port int
}

func newFolder(t *testing.T) folder {
	t.Helper()
	// Not t.TempDir: the name of a Unix socket has at most 108 bytes, and
	// another user must be able to get in.
	dir, err := os.MkdirTemp("", "pgbounce")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o777))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return folder{dir, l.Addr().(*net.TCPAddr).Port}
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// write writes a pgbouncer.ini for a PostgreSQL. Lines that are added win.
func (f folder) write(t *testing.T, dsn string, lines ...string) string {
	t.Helper()
	pg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	text := fmt.Sprintf(`[databases]
db = host=%s port=%d dbname=%s user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir = %s
unix_socket_mode = 0750
auth_type = any
logfile = %s
pidfile = %s
pool_mode = transaction
server_tls_sslmode = disable
%s
`, pg.Host, pg.Port, pg.Database, pg.User, f.port, f.dir, f.path("log"), f.path("pid"), strings.Join(lines, "\n"))
	require.NoError(t, os.WriteFile(f.path("a.ini"), []byte(text), 0o644))
	return f.path("a.ini")
}

func (f folder) dsn() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=u dbname=db sslmode=disable connect_timeout=5", f.port)
}

func (f folder) connect(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, f.dsn()) }

func (f folder) log(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(f.path("log"))
	require.NoError(t, err)
	return string(text)
}

// A child is the command in a process of its own.
type child struct {
	cmd    *exec.Cmd
	output *buffer
	done   chan struct{}
	err    error
}

// start starts the command, and ends it with the test.
func start(t *testing.T, args ...string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], args...), output: &buffer{}, done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), asMain+"=1")
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.output
	require.NoError(t, c.cmd.Start())
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.done
		if t.Failed() {
			t.Logf("output of %v:\n%s", args, c.output)
		}
	})
	return c
}

func (c *child) signal(t *testing.T, s os.Signal) {
	t.Helper()
	require.NoError(t, c.cmd.Process.Signal(s))
}

// waitFor waits until the output has a text.
func (c *child) waitFor(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(c.output.String(), text) }, 20*time.Second, 5*time.Millisecond, text)
}

// ends waits until the command has ended, and returns its code.
func (c *child) ends(t *testing.T) int {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		require.FailNow(t, "it runs on", c.output.String())
	}
	if exit, ok := errors.AsType[*exec.ExitError](c.err); ok {
		return exit.ExitCode()
	}
	require.NoError(t, c.err)
	return 0
}

func (c *child) runs() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

const up = "process up"

func TestServesUntilItsLastClientHasLeft(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	c := start(t, f.write(t, testserver.Postgres(t)))
	c.waitFor(t, up)

	// By TCP and by the socket, with its mode.
	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	var n int
	require.NoError(t, conn.QueryRow(t.Context(), "select 6*7").Scan(&n))
	require.Equal(t, 42, n)
	socket := f.path(".s.PGSQL." + strconv.Itoa(f.port))
	info, err := os.Stat(socket)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o750), info.Mode().Perm())
	local, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=u dbname=db", f.dir, f.port))
	require.NoError(t, err)
	require.NoError(t, local.Ping(t.Context()))
	require.NoError(t, local.Close(t.Context()))

	pid, err := os.ReadFile(f.path("pid"))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(c.cmd.Process.Pid), string(pid))
	require.Contains(t, f.log(t), up)

	// A second one does not take its place.
	second := start(t, f.path("a.ini"))
	require.Equal(t, 1, second.ends(t))
	require.Contains(t, second.output.String(), "address already in use")

	c.signal(t, syscall.SIGTERM)
	c.waitFor(t, "waiting for all clients")
	require.Eventually(t, func() bool {
		_, err := f.connect(t.Context())
		return err != nil
	}, 10*time.Second, 10*time.Millisecond, "nobody else comes in")
	require.NoError(t, conn.QueryRow(t.Context(), "select 6*7").Scan(&n), "who is in stays")
	require.True(t, c.runs())
	require.NoError(t, conn.Close(t.Context()))
	require.Equal(t, 0, c.ends(t))
	require.NoFileExists(t, f.path("pid"))
	require.NoFileExists(t, socket)
}

func TestIntWaitsForTransactions(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	c := start(t, f.write(t, testserver.Postgres(t)))
	c.waitFor(t, up)
	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	c.signal(t, syscall.SIGINT)
	c.waitFor(t, "waiting for all servers")
	_, err = tx.Exec(t.Context(), "select 1")
	require.NoError(t, err)
	require.True(t, c.runs())
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, 0, c.ends(t), "though the client is still there")
}

func TestQuitAndSecondSignalsEndItAtOnce(t *testing.T) {
	t.Parallel()
	for _, signals := range [][]os.Signal{{syscall.SIGQUIT}, {syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGINT, syscall.SIGINT}} {
		f := newFolder(t)
		c := start(t, f.write(t, testserver.Postgres(t)))
		c.waitFor(t, up)
		conn, err := f.connect(t.Context())
		require.NoError(t, err)
		_, err = conn.Begin(t.Context())
		require.NoError(t, err)
		c.signal(t, signals[0])
		if len(signals) > 1 {
			c.waitFor(t, "shutting down")
			c.signal(t, signals[1])
		}
		require.Equal(t, 0, c.ends(t))
		require.NoFileExists(t, f.path("pid"))
		require.Error(t, conn.Ping(t.Context()))
	}
}

func TestHupReadsTheFileAgainAndReopensTheLog(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	pg := testserver.Postgres(t)
	c := start(t, f.write(t, pg))
	c.waitFor(t, up)
	require.NoError(t, os.Rename(f.path("log"), f.path("log.1")))
	f.write(t, pg, "max_client_conn = 1", "listen_backlog = 7", "pkt_buf = 1")
	c.signal(t, syscall.SIGHUP)
	c.waitFor(t, "pkt_buf has no effect")
	c.waitFor(t, "waits for a restart: listen_backlog")
	require.Contains(t, f.log(t), "pkt_buf has no effect")

	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = f.connect(t.Context())
	require.ErrorContains(t, err, "max_client_conn")

	// What is broken changes nothing.
	f.write(t, pg, "max_client_conn = none")
	c.signal(t, syscall.SIGHUP)
	c.waitFor(t, "not reloaded")
	require.NoError(t, conn.Ping(t.Context()))
	require.True(t, c.runs())
}

func TestUsr1PausesAndUsr2Resumes(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	c := start(t, f.write(t, testserver.Postgres(t)))
	c.waitFor(t, up)
	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	defer conn.Close(context.Background())
	require.NoError(t, conn.Ping(t.Context()))
	c.signal(t, syscall.SIGUSR1)
	c.waitFor(t, "pausing all activity")
	answered := make(chan error, 1)
	require.Eventually(t, func() bool { // the signal is logged before it has its effect
		go func() { answered <- conn.Ping(context.Background()) }()
		select {
		case <-answered:
			return false
		case <-time.After(200 * time.Millisecond):
			return true
		}
	}, 10*time.Second, time.Millisecond)
	c.signal(t, syscall.SIGUSR2)
	select {
	case err := <-answered:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.FailNow(t, "it does not go on")
	}
}

func TestRunsInTheBackground(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	ini := f.write(t, testserver.Postgres(t))
	t.Cleanup(func() { // whatever fails here leaves no process behind
		text, _ := os.ReadFile(f.path("pid"))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	c := start(t, "-d", ini)
	require.Equal(t, 0, c.ends(t))
	require.Empty(t, c.output.String())
	// When the one in front has ended, the other lets clients in.
	text, err := os.ReadFile(f.path("pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	daemon, err := os.FindProcess(pid)
	require.NoError(t, err)
	require.NotEqual(t, c.cmd.Process.Pid, pid)
	conn, err := f.connect(t.Context())
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))

	// What keeps a second one from it is told in front.
	second := start(t, "-qd", ini)
	require.Equal(t, 1, second.ends(t))
	require.Contains(t, second.output.String(), "address already in use")

	require.NoError(t, daemon.Signal(syscall.SIGTERM))
	require.Eventually(t, func() bool {
		_, err := os.Stat(f.path("pid"))
		return errors.Is(err, fs.ErrNotExist)
	}, 20*time.Second, 5*time.Millisecond)
}

func TestTwoProcessesShareAPort(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	pg := testserver.Postgres(t)
	first := start(t, f.write(t, pg, "so_reuseport = 1", "unix_socket_dir ="))
	first.waitFor(t, up)
	second := start(t, f.write(t, pg, "so_reuseport = 1", "unix_socket_dir =", "pidfile ="))
	second.waitFor(t, up)
	first.signal(t, syscall.SIGTERM)
	require.Equal(t, 0, first.ends(t))
	for range 10 { // all of them come to the second
		conn, err := f.connect(t.Context())
		require.NoError(t, err)
		require.NoError(t, conn.Close(t.Context()))
	}
}

func TestBecomesAnotherUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can")
	}
	f := newFolder(t)
	c := start(t, "-u", "nobody", f.write(t, testserver.Postgres(t)))
	c.waitFor(t, up)
	require.NotContains(t, c.output.String(), "running as root")
	info, err := os.Stat(f.path("pid"))
	require.NoError(t, err)
	require.NotZero(t, info.Sys().(*syscall.Stat_t).Uid)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	require.NoError(t, err)
	require.Regexp(t, `Uid:\s+65534\s+65534\s+65534\s`, string(status))
	require.Regexp(t, `Groups:\s+65534\s*\n`, string(status), "root's own groups are gone")
}

func TestStalePIDFileAndSocketAreReplaced(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	ini := f.write(t, testserver.Postgres(t))
	c := start(t, ini)
	c.waitFor(t, up)
	require.NoError(t, c.cmd.Process.Kill())
	<-c.done
	require.FileExists(t, f.path("pid"))
	c = start(t, ini)
	c.waitFor(t, up)
	require.NoError(t, os.WriteFile(f.path("other"), fmt.Appendln(nil, os.Getpid()), 0o600))
	f2 := newFolder(t)
	second := start(t, f2.write(t, testserver.Postgres(t), "pidfile = "+f.path("other")))
	require.Equal(t, 1, second.ends(t))
	require.Contains(t, second.output.String(), "another instance running?")
	require.FileExists(t, f.path("other"), "it is the other's")
}

func TestRefusesWithoutTouchingAnything(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	pg := testserver.Postgres(t)
	require.NoError(t, os.WriteFile(f.path(".s.PGSQL."+strconv.Itoa(f.port)), []byte("mine"), 0o600))
	for _, test := range []struct{ line, want string }{
		{"", "is not a socket"},
		{"listen_addr =\nunix_socket_dir =", "nowhere to listen"},
		{"listen_addr = 192.0.2.1", "cannot assign requested address"},
		{"unix_socket_dir = /no/such", "unix_socket_dir: "},
		{"user = no-such-user", "user: "},
		{"logfile = /no/such/log", "logfile: open /no/such/log"},
		{"pidfile = /no/such/pid\nunix_socket_dir =", "pidfile: open /no/such/pid"},
		{"nonsense = 1", "unknown key nonsense"},
	} {
		var stdout, stderr bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // if it does not refuse
		code := run(ctx, []string{f.write(t, pg, test.line)}, &stdout, &stderr, nil)
		cancel()
		require.Equal(t, 1, code, test.line)
		require.Contains(t, stderr.String(), test.want, test.line)
		require.NoFileExists(t, f.path("pid"))
	}
	text, err := os.ReadFile(f.path(".s.PGSQL." + strconv.Itoa(f.port)))
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
	for want, lines := range map[string]string{"daemon needs pidfile": "pidfile =", "daemon needs logfile": "logfile ="} {
		var stderr bytes.Buffer
		require.Equal(t, 1, run(t.Context(), []string{"-d", f.write(t, pg, lines)}, &stderr, &stderr, nil))
		require.Contains(t, stderr.String(), want)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	ctx, cancel := context.WithCancel(t.Context())
	var stderr buffer
	code := make(chan int, 1)
	ini := f.write(t, testserver.Postgres(t))
	go func() { code <- run(ctx, []string{"-R", ini}, &stderr, &stderr, nil) }()
	require.Eventually(t, func() bool { return strings.Contains(stderr.String(), up) }, 20*time.Second, time.Millisecond)
	require.Contains(t, stderr.String(), "-R has no effect")
	cancel()
	require.Equal(t, 0, <-code)
}

// What the console is given.
func TestSettingsAreShownAndChanged(t *testing.T) {
	t.Parallel()
	f := newFolder(t)
	ini := f.write(t, testserver.Postgres(t))
	file, err := pgbounce.ReadINI(ini)
	require.NoError(t, err)
	p := &process{console: make(chan os.Signal, 1)}
	p.logs, err = openLogs(options{quiet: true}, &file, nil)
	require.NoError(t, err)
	defer p.logs.close()
	p.log = p.logs.logger()
	p.file = p.configured(file)
	p.bouncer, err = pgbounce.New(p.file.Config)
	require.NoError(t, err)
	defer p.bouncer.Close()
	shown := func(key string) string {
		for _, s := range p.settings() {
			if s[0] == key {
				return s[1]
			}
		}
		return "none"
	}

	require.NoError(t, p.set("max_client_conn", "7"))
	require.Equal(t, "7", shown("max_client_conn"))
	require.ErrorContains(t, p.set("listen_port", "7"), "needs a restart")
	require.ErrorContains(t, p.set("default_pool_size", "0"), "want a whole number")
	require.Equal(t, "20", shown("default_pool_size"))
	require.NoError(t, p.set("logfile", f.path("log2")))
	p.log.Info("to the new one")
	text, err := os.ReadFile(f.path("log2"))
	require.NoError(t, err)
	require.Contains(t, string(text), "to the new one")

	// A reload takes back what was set, and leaves what needs a restart.
	f.write(t, testserver.Postgres(t), "listen_port = 1", "default_pool_size = 9")
	require.NoError(t, p.reload(t.Context()))
	require.Equal(t, "100", shown("max_client_conn"))
	require.Equal(t, "9", shown("default_pool_size"))
	require.Equal(t, strconv.Itoa(f.port), shown("listen_port"))
	f.write(t, testserver.Postgres(t), "nonsense = 1")
	require.ErrorContains(t, p.reload(t.Context()), "unknown key nonsense")
	require.Equal(t, "9", shown("default_pool_size"))

	for after, want := range map[string]os.Signal{"": syscall.SIGQUIT, "transactions": syscall.SIGINT, "clients": syscall.SIGTERM} {
		p.stop(after)
		p.stop(after)
		require.Equal(t, want, <-p.console)
		require.Empty(t, p.console)
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		line string
		want options
	}{
		{"a.ini", options{path: "a.ini"}},
		{"-d a.ini", options{path: "a.ini", daemon: true}},
		{"a.ini -d", options{path: "a.ini", daemon: true}},
		{"-qRd -vv a.ini -v", options{path: "a.ini", daemon: true, quiet: true, reboot: true, verbose: 3}},
		{"--quiet --daemon --reboot --verbose a.ini", options{path: "a.ini", daemon: true, quiet: true, reboot: true, verbose: 1}},
		{"-u bob a.ini", options{path: "a.ini", user: "bob"}},
		{"-ubob a.ini", options{path: "a.ini", user: "bob"}},
		{"-qubob a.ini", options{path: "a.ini", user: "bob", quiet: true}},
		{"--user=bob a.ini", options{path: "a.ini", user: "bob"}},
		{"--user bob a.ini", options{path: "a.ini", user: "bob"}},
		{"-V", options{version: true}},
		{"-h", options{help: true}},
		{"--help", options{help: true}},
	} {
		got, err := parseOptions(strings.Fields(test.line))
		require.NoError(t, err, test.line)
		require.Equal(t, test.want, got, test.line)
	}
	for line, want := range map[string]string{
		"": "no configuration file", "a b": "more than one", "-x a": "-x", "-dx a": "x", "-u": "argument",
	} {
		_, err := parseOptions(strings.Fields(line))
		require.ErrorContains(t, err, want, line)
	}
	require.Equal(t, []string{"-q", "-u", "-d", "a.ini"}, foreground([]string{"-u", "-d", "--daemon", "-d", "a.ini"}))

	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, run(t.Context(), []string{"-V"}, &stdout, &stderr, nil))
	require.Regexp(t, `^pgbounce \S+\ngo1`, stdout.String())
	stdout.Reset()
	require.Equal(t, 0, run(t.Context(), []string{"-h"}, &stdout, &stderr, nil))
	require.Contains(t, stdout.String(), "CONFIG_FILE")
	require.Equal(t, 1, run(t.Context(), nil, &stdout, &stderr, nil))
	require.Contains(t, stderr.String(), "pgbounce: no configuration file specified")
}
