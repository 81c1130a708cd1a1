//go:build !linux

package pgbounce

import (
	"errors"
	"time"
)

// A poller, where there is no epoll, only waits to be woken: all sockets are
// read by goroutines of their own and reach the loop through memory.
type poller struct{ wakeups chan struct{} }

func newPoller() (*poller, error) { return &poller{wakeups: make(chan struct{}, 1)}, nil }

func (p *poller) add(int) error        { return errors.ErrUnsupported }
func (p *poller) want(int, bool) error { return errors.ErrUnsupported }
func (p *poller) remove(int)           {}
func (p *poller) poll() int            { return 0 }
func (p *poller) wait() int            { <-p.wakeups; return 0 }
func (p *poller) woken()               {}
func (p *poller) fd() int              { return -2 }
func (p *poller) close()               {}

func (p *poller) event(int) (fd int, readable, writable, ended bool) { return -1, false, false, false }

func (p *poller) wake() {
	select {
	case p.wakeups <- struct{}{}:
	default:
	}
}

func readFD(int, []byte) (int, error)  { return 0, errors.ErrUnsupported }
func writeFD(int, []byte) (int, error) { return 0, errors.ErrUnsupported }
func closeFD(int)                      {}

const polled = false

func dupFD(int) (int, error) { return -1, errors.ErrUnsupported }

// processorTime is not known here, so there is one loop.
func processorTime() time.Duration { return 0 }
