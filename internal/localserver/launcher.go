package localserver

import (
	"os/exec"
	"runtime"
	"syscall"
)

// A launcher starts processes from one operating system thread. The kernel
// signals a child when the thread that started it ends, not the process, and
// Go ends threads as it likes: so this one is kept until all children are gone.
type launcher struct {
	jobs chan func()
	done chan struct{}
}

func newLauncher(h *Host) *launcher {
	l := &launcher{jobs: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		runtime.LockOSThread() // never unlocked: the thread ends with us
		for job := range l.jobs {
			job()
		}
		// A program may forget the host but not the addresses of its servers.
		// The garbage collector would then close the lock and the guard.
		runtime.KeepAlive(h)
	}()
	return l
}

// start starts cmd in a process group of its own, so that a Ctrl-C in a
// terminal reaches only us, who then stop the servers in order.
func (l *launcher) start(cmd *exec.Cmd, as *account) error {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		attr.Credential = &syscall.Credential{Uid: as.uid, Gid: as.gid}
	}
	dieWithParent(attr)
	cmd.SysProcAttr = attr

	started := make(chan error)
	l.jobs <- func() { started <- cmd.Start() }
	return <-started
}

func (l *launcher) close() {
	close(l.jobs)
	<-l.done
}
