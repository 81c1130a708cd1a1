package pgbounce

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// errAgain says that there is nothing to read now. It is temporary, so that
// crypto/tls goes on after it.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "pgbounce: nothing to read now" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// A wire is a connection once a loop has it: a socket, a socket with TLS, or
// memory. All its methods are called under the loop's lock.
type wire struct {
	loop *loop
	on   ender
	fd   int       // -1 if it is memory
	mem  *memory   // or nil
	tls  *tls.Conn // or nil; reads and writes through this wire's raw
	raw  *rawConn  // what tls reads from and writes to

	out      []byte // what the other end has not taken yet
	readable bool   // there may be something to read
	queued   bool   // it is in loop.again
	ended    bool   // the other end has closed it: read on to the end
	shut     bool
}

// An ender is the client or server at the end of a wire.
type ender interface {
	// flow moves what can be moved: it is called when bytes may have come, or
	// may go again.
	flow()
	// lost is called when the wire is broken or ended.
	lost(error)
}

// event is called when the socket can do something it could not before.
func (w *wire) event(readable, writable bool) {
	if w.shut {
		return
	}
	defer w.loop.guard("event", func() { w.on.lost(errors.New("internal error")) })
	if readable {
		w.readable = true
	}
	if writable && len(w.out) > 0 {
		if err := w.flush(); err != nil {
			w.on.lost(err)
			return
		}
	}
	w.on.flow()
}

// later has the wire's end flow again after the others had their turn.
func (w *wire) later() {
	if !w.queued {
		w.queued = true
		w.loop.again = append(w.loop.again, w)
	}
}

// read reads what is there, at most len(p) bytes.
func (w *wire) read(p []byte) (n int, err error) {
	switch {
	case w.tls != nil:
		n, err = w.tls.Read(p)
		if n > 0 {
			err = nil
		}
		if err == nil {
			return n, nil
		}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			err = errAgain
		}
	case w.mem != nil:
		n, err = w.mem.take(p)
	default:
		n, err = readFD(w.fd, p)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if n < len(p) && err == nil && !w.ended {
			// A socket that gave less has no more, and tells when it has.
			w.readable = false
		}
	}
	if err != nil {
		w.readable = false
	}
	return n, err
}

// write writes p, and keeps what the other end does not take now. The caller
// stops producing while pending is true.
func (w *wire) write(p []byte) error {
	if w.tls != nil {
		_, err := w.tls.Write(p) // comes back as writeRaw
		return err
	}
	return w.writeRaw(p)
}

func (w *wire) writeRaw(p []byte) error {
	if len(w.out) > 0 {
		w.out = append(w.out, p...)
		return nil
	}
	for len(p) > 0 {
		var n int
		var err error
		if w.mem != nil {
			n, err = w.mem.put(p)
		} else {
			n, err = writeFD(w.fd, p)
		}
		if err == errAgain {
			w.out = append(w.out, p...)
			if w.fd >= 0 {
				return w.loop.poller.want(w.fd, true)
			}
			return nil
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// flush writes what was kept.
func (w *wire) flush() error {
	kept := w.out
	w.out = nil
	for len(kept) > 0 {
		var n int
		var err error
		if w.mem != nil {
			n, err = w.mem.put(kept)
		} else {
			n, err = writeFD(w.fd, kept)
		}
		if err == errAgain {
			w.out = kept
			return nil
		}
		if err != nil {
			return err
		}
		kept = kept[n:]
	}
	if w.fd >= 0 {
		return w.loop.poller.want(w.fd, false)
	}
	return nil
}

func (w *wire) pending() bool { return len(w.out) > 0 }

// close ends the connection. What was kept is lost.
func (w *wire) close() {
	if w.shut {
		return
	}
	w.shut = true
	if w.loop != nil {
		w.loop.detach(w)
	}
	if w.fd >= 0 {
		closeFD(w.fd)
	}
	if w.mem != nil {
		w.mem.Close()
	}
}

// A rawConn is what TLS runs over: at first the connection itself, while a
// goroutine shakes hands, and then the wire.
type rawConn struct {
	net.Conn
	wire *wire
}

func (r *rawConn) Read(p []byte) (int, error) {
	if r.wire == nil {
		return r.Conn.Read(p)
	}
	if r.wire.mem != nil {
		return r.wire.mem.take(p)
	}
	n, err := readFD(r.wire.fd, p)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

func (r *rawConn) Write(p []byte) (int, error) {
	if r.wire == nil {
		return r.Conn.Write(p)
	}
	if err := r.wire.writeRaw(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// take takes a connection away from its goroutine. What cannot be polled is
// pumped through memory by two goroutines.
func (w *wire) take(conn net.Conn) error {
	w.fd, w.readable = -1, true
	bare := conn
	if t, ok := conn.(*tls.Conn); ok {
		w.tls = t
		w.raw = t.NetConn().(*rawConn)
		bare = w.raw.Conn
	}
	switch c := bare.(type) {
	case *memory:
		w.mem = c
	default:
		fd, err := takeFD(bare)
		if errors.Is(err, errors.ErrUnsupported) {
			w.mem = pump(bare)
			break
		}
		if err != nil {
			return err
		}
		w.fd = fd
		bare.Close()
	}
	if w.raw != nil {
		w.raw.wire = w
	}
	return nil
}

// takeFD returns a second descriptor of a socket: the first is known to Go's
// own poller, which would be woken by each packet as well.
func takeFD(conn net.Conn) (int, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok || !polled {
		return -1, errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(old uintptr) { fd, derr = dupFD(int(old)) }); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("dup", derr)
}
