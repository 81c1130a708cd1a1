//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
)

// readyVariable tells a process that it is the one in the background, and that
// file 3 is a pipe on which to say how its start went.
const readyVariable = "PGBOUNCE_READY"

// startDaemon starts this program once more in the background, and returns when
// that lets clients in, or with the error that keeps it from it. A Go process
// cannot fork.
func startDaemon(args []string, f *pgbounce.File) error {
	if f.PIDFile == "" {
		return errors.New("daemon needs pidfile configured")
	}
	if f.LogFile == "" && !f.Syslog {
		return errors.New("daemon needs logfile or syslog configured")
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(program, foreground(args)...)
	cmd.Env = append(os.Environ(), readyVariable+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	said, err := io.ReadAll(r)
	switch {
	case err != nil:
		return fmt.Errorf("daemon: %w", err)
	case string(said) == "ready":
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // it is ending, and what it said is better than its code
	return errors.New(strings.TrimPrefix(string(said), "pgbounce: "))
}

// foreground takes -d out of the arguments, and makes them quiet: standard
// error leads nowhere.
func foreground(args []string) []string {
	kept := []string{"-q"}
	split := splitLetters(args)
	for i, arg := range split {
		value := i > 0 && (split[i-1] == "-u" || split[i-1] == "--user")
		if value || arg != "-d" && arg != "--daemon" && arg != "-daemon" {
			kept = append(kept, arg)
		}
	}
	return kept
}

// A readiness tells the process in the foreground how the start went. Nil tells
// no one.
type readiness struct{ pipe *os.File }

func readyPipe() *readiness {
	if os.Getenv(readyVariable) == "" {
		return nil
	}
	os.Unsetenv(readyVariable)
	syscall.CloseOnExec(3)
	return &readiness{os.NewFile(3, "ready")}
}

func (r *readiness) done() { r.say("ready") }

func (r *readiness) failed(err error) { r.say(err.Error()) }

func (r *readiness) say(text string) {
	if r == nil || r.pipe == nil {
		return
	}
	_, _ = io.WriteString(r.pipe, text) // if nobody waits any more, nobody needs it
	_ = r.pipe.Close()
	r.pipe = nil
}

// become changes the user of the process, as only root can.
func become(name string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	if uid == os.Getuid() {
		return nil
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	names, err := u.GroupIds()
	if err != nil {
		return fmt.Errorf("user: %w", err)
	}
	var groups []int
	for _, n := range names {
		if g, err := strconv.Atoi(n); err == nil {
			groups = append(groups, g)
		}
	}
	// The groups come first: without root they could not be changed any more.
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("user %s: set groups: %w", name, err)
	}
	if err := syscall.Setgid(gid); err != nil {
		return fmt.Errorf("user %s: set group: %w", name, err)
	}
	if err := syscall.Setuid(uid); err != nil {
		return fmt.Errorf("user %s: set user: %w", name, err)
	}
	return nil
}

// writePID leaves the number of this process in a file, unless a process runs
// that has left its own there.
func writePID(path string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return fmt.Errorf("pidfile %s exists, another instance running?", path)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("pidfile: stale, and %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("pidfile: %w", err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	_, err = fmt.Fprintln(file, os.Getpid())
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	return nil
}

func removePID(path string) {
	if path != "" {
		_ = os.Remove(path)
	}
}

// tellSystemd tells the service manager of the state of this process, if there
// is one that wants to know: Debian's unit for PgBouncer has Type=notify.
func tellSystemd(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	c, err := net.DialTimeout("unixgram", name, time.Second)
	if err != nil {
		return
	}
	_, _ = io.WriteString(c, state)
	_ = c.Close()
}
