package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// ini is the file that both poolers read for pgbench. Everything else is PgBouncer's default.
const ini = `[databases]
* = host=127.0.0.1 port=%d user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
logfile =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = %d
`

// A pooler is a process of PgBouncer or of what is compared with it. Both are
// started in the same way.
type pooler struct {
	port  int // of pgbench's poolers
	log   string
	cmd   *exec.Cmd
	ended chan struct{} // closed at the end
}

// startPooler starts a program with an ini and returns when it takes clients at an
// address. The folder is below that of the host, whose guard kills what has its
// log there if we are killed.
func startPooler(ctx context.Context, program, dir, ini, network, address string) (*pooler, error) {
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(ini), 0o644); err != nil {
		return nil, err
	}
	p := &pooler{log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{file}
	if os.Geteuid() == 0 {
		args = []string{"-u", "nobody", file} // PgBouncer refuses to run as root
	}
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		p.cmd.Wait() // an error only repeats the state
	}()
	if err := p.await(ctx, network, address); err != nil {
		p.stop()
		return nil, fmt.Errorf("start %s: %w", program, p.trouble(err))
	}
	return p, nil
}

// await waits until a client can log in.
func (p *pooler) await(ctx context.Context, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := login(ctx, network, address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.ended:
			return fmt.Errorf("ended: %s", p.cmd.ProcessState)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// stop ends the process, at first by asking, and waits for it.
func (p *pooler) stop() {
	p.cmd.Process.Signal(syscall.SIGINT) // SIGTERM may wait for clients
	select {
	case <-p.ended:
	case <-time.After(5 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// trouble adds the end of the log to an error.
func (p *pooler) trouble(err error) error {
	text, _ := os.ReadFile(p.log)
	return fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
}

// cpu returns the processor time that all threads have taken. That of no pooler
// is 0.
func (p *pooler) cpu() (time.Duration, error) {
	if p == nil {
		return 0, nil
	}
	text, err := os.ReadFile(p.proc("stat"))
	if err != nil {
		return 0, p.trouble(err)
	}
	// "pid (name) state ...": utime and stime are the 14th and 15th field, in
	// hundredths of a second.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s has %d fields", p.proc("stat"), len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// rss returns how many bytes of memory it has. No pooler has none.
func (p *pooler) rss() (int64, error) {
	if p == nil {
		return 0, nil
	}
	return proof.Kilobytes(p.proc("status"), "VmRSS")
}

func (p *pooler) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), name)
}

// local returns the address of a port of this machine.
func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// freePort returns a port below those of outgoing connections, one of which
// could take it before the pooler does.
func freePort() (int, error) {
	for range 1000 {
		port := 16384 + rand.IntN(16384)
		l, err := net.Listen("tcp", local(port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("no free port")
}
