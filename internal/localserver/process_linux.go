package localserver

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent makes the kernel kill the child when our thread ends. SIGKILL,
// because a paused process would keep any other signal for later.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// processes returns the processes whose standard error is the given log file:
// all those of one server. A PostgreSQL backend is in a session of its own and
// loses its parent if that is killed, but it keeps this file.
func processes(log string) []int {
	want, err := os.Stat(log)
	if err != nil {
		return nil
	}
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		got, err := os.Stat(filepath.Join("/proc", e.Name(), "fd/2"))
		if err == nil && os.SameFile(want, got) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stopped reports whether a process is stopped or gone.
func stopped(pid int) bool { return state(pid) == 'T' || gone(pid) }

// gone reports whether a process has ended. Where nobody collects it, its
// number stays as that of a zombie (Z).
func gone(pid int) bool {
	s := state(pid)
	return s == 0 || s == 'Z' || s == 'X'
}

// state returns the letter that /proc shows for a process, or 0 if none.
func state(pid int) byte {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0
	}
	// "pid (name) state ...": the name may contain anything.
	end := strings.LastIndex(string(stat), ") ")
	if end < 0 || end+2 >= len(stat) {
		return 0
	}
	return stat[end+2]
}

// guardScript waits for the end of its input, which comes when we close it or
// die, and kills what is left of the servers: backends of PostgreSQL that are
// paused or busy do not notice the death of their parent. It goes round
// three times because a process may fork while it is being looked for. It shares
// our lock on the folder, so nobody uses or removes that before it has finished:
// it would kill the next process's servers, or not find ours.
const guardScript = `
read -r line
for round in 1 2 3; do
	for process in /proc/[0-9]*; do
		for log in "$0"/*/log; do
			[ "$process/fd/2" -ef "$log" ] && kill -KILL "${process#/proc/}"
		done
	done
done
exit 0`

type guard struct {
	cmd   *exec.Cmd
	input io.Closer
}

func startGuard(dir string, lock *os.File) (io.Closer, error) {
	g := &guard{cmd: exec.Command("/bin/sh", "-c", guardScript, dir)}
	g.cmd.Dir = "/"
	g.cmd.ExtraFiles = []*os.File{lock}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	input, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	g.input = input
	return g, g.cmd.Start()
}

func (g *guard) Close() error {
	g.input.Close()
	return g.cmd.Wait()
}
