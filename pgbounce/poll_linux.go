package pgbounce

import (
	"syscall"
	"time"
	"unsafe"
)

// A poller tells which of a loop's sockets have something to do. Sockets are
// registered once, edge-triggered: what is not read at once is remembered in
// its wire, so pausing a socket costs no system call.
type poller struct {
	epoll  int
	wakeup int // an eventfd: ends a wait
	events [256]syscall.EpollEvent
}

const (
	epollet     = 1 << 31
	efdNonblock = 0x800
	efdCloexec  = 0x80000
)

func newPoller() (*poller, error) {
	ep, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, efdNonblock|efdCloexec, 0)
	if errno != 0 {
		syscall.Close(ep)
		return nil, errno
	}
	p := &poller{epoll: ep, wakeup: int(fd)}
	if err := p.add(p.wakeup); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *poller) add(fd int) error { return p.control(syscall.EPOLL_CTL_ADD, fd, false) }

// want asks to be told, or no longer, when fd takes bytes again.
func (p *poller) want(fd int, writable bool) error {
	return p.control(syscall.EPOLL_CTL_MOD, fd, writable)
}

func (p *poller) control(op, fd int, writable bool) error {
	e := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | epollet, Fd: int32(fd)}
	if writable {
		e.Events |= syscall.EPOLLOUT
	}
	return syscall.EpollCtl(p.epoll, op, fd, &e)
}

func (p *poller) remove(fd int) { _ = p.control(syscall.EPOLL_CTL_DEL, fd, false) }

// poll returns how many of p.events there are without waiting for any.
func (p *poller) poll() int {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.epoll),
		uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// wait returns how many of p.events there are, at least one unless it was
// interrupted.
func (p *poller) wait() int {
	n, err := syscall.EpollWait(p.epoll, p.events[:], -1)
	if err != nil {
		return 0
	}
	return n
}

// event returns the i-th socket of the last wait, what it can do, and whether
// the other end has closed it, which is told only once.
func (p *poller) event(i int) (fd int, readable, writable, ended bool) {
	e := &p.events[i]
	const in = syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLHUP | syscall.EPOLLERR
	return int(e.Fd), e.Events&in != 0, e.Events&(syscall.EPOLLOUT|syscall.EPOLLHUP|syscall.EPOLLERR) != 0,
		e.Events&(syscall.EPOLLRDHUP|syscall.EPOLLHUP|syscall.EPOLLERR) != 0
}

var one = [8]byte{1}

func (p *poller) wake() {
	syscall.RawSyscall(syscall.SYS_WRITE, uintptr(p.wakeup), uintptr(unsafe.Pointer(&one)), 8)
}

// woken takes the wake-up back, so that there can be another.
func (p *poller) woken() {
	var n [8]byte
	syscall.RawSyscall(syscall.SYS_READ, uintptr(p.wakeup), uintptr(unsafe.Pointer(&n)), 8)
}

func (p *poller) close() {
	syscall.Close(p.wakeup)
	syscall.Close(p.epoll)
}

// readFD and writeFD do not tell the scheduler: on a socket that does not block
// they take less time than that would. Nor do they go through the file system's
// read and write, which takes longer.
func readFD(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EAGAIN:
			return 0, errAgain
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

func writeFD(fd int, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case syscall.EAGAIN:
			return 0, errAgain
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

func closeFD(fd int) { syscall.Close(fd) }

func (p *poller) fd() int { return p.wakeup }

// polled tells that loops can wait for sockets.
const polled = true

func dupFD(fd int) (int, error) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// processorTime returns what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
