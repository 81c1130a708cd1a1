package pgbounce

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// memory is one end of a connection inside this process: a net.Conn, and once a
// loop has it, without waiting.
type memory struct {
	in, out *half
	other   *memory
}

// A half is one direction. The limit bounds what a fast writer leaves with a
// slow reader.
type half struct {
	mu     sync.Mutex
	turn   sync.Cond
	buf    []byte
	off    int
	closed bool
	// read and write deadlines, and whether they are over
	rd, wd deadline
	// told, if set, are called after bytes have come or gone, without the lock.
	came, went func()
	full       bool // a writer that does not wait found no room
}

const halfLimit = 256 << 10

type deadline struct {
	timer *time.Timer
	over  bool
}

func newMemory() (a, b *memory) {
	x, y := &half{}, &half{}
	x.turn.L, y.turn.L = &x.mu, &y.mu
	a = &memory{in: x, out: y}
	b = &memory{in: y, out: x}
	a.other, b.other = b, a
	return a, b
}

// notify has came called when there is something to take, and went when there
// is room again for what put did not take.
func (m *memory) notify(came, went func()) {
	m.in.mu.Lock()
	m.in.came = came
	m.in.mu.Unlock()
	m.out.mu.Lock()
	m.out.went = went
	m.out.mu.Unlock()
}

// take reads without waiting.
func (m *memory) take(p []byte) (int, error) {
	h := m.in
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.off == len(h.buf) {
		if h.closed {
			return 0, io.EOF
		}
		return 0, errAgain
	}
	return h.pullLocked(p), nil
}

// ended tells whether the other end is closed.
func (m *memory) ended() bool {
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	return m.in.closed
}

// put writes what there is room for without waiting.
func (m *memory) put(p []byte) (int, error) {
	h := m.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, io.ErrClosedPipe
	}
	n := min(len(p), halfLimit-(len(h.buf)-h.off))
	if n <= 0 {
		h.full = true
		return 0, errAgain
	}
	h.pushLocked(p[:n])
	return n, nil
}

func (h *half) pullLocked(p []byte) int {
	n := copy(p, h.buf[h.off:])
	h.off += n
	if h.off == len(h.buf) {
		h.off = 0
		if h.buf = h.buf[:0]; cap(h.buf) > 4096 {
			h.buf = nil // an idle connection keeps little
		}
	}
	h.turn.Broadcast()
	return n
}

func (h *half) pushLocked(p []byte) {
	if h.off > 0 && h.off >= len(h.buf)/2 {
		h.buf = h.buf[:copy(h.buf, h.buf[h.off:])]
		h.off = 0
	}
	h.buf = append(h.buf, p...)
	h.turn.Broadcast()
}

// Read reads what is there, and waits if there is nothing.
func (m *memory) Read(p []byte) (int, error) {
	h := m.in
	h.mu.Lock()
	for h.off == len(h.buf) && len(p) > 0 {
		switch {
		case h.closed:
			h.mu.Unlock()
			return 0, io.EOF
		case h.rd.over:
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		h.turn.Wait()
	}
	n := h.pullLocked(p)
	var went func()
	if h.full {
		h.full, went = false, h.went
	}
	h.mu.Unlock()
	if went != nil {
		went()
	}
	return n, nil
}

// Write writes all of p, and waits for room.
func (m *memory) Write(p []byte) (n int, err error) {
	h := m.out
	for {
		h.mu.Lock()
		for len(h.buf)-h.off >= halfLimit && !h.closed && !h.wd.over {
			h.turn.Wait()
		}
		switch {
		case h.closed:
			err = io.ErrClosedPipe
		case h.wd.over:
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			h.mu.Unlock()
			return n, err
		}
		k := min(len(p)-n, halfLimit-(len(h.buf)-h.off))
		h.pushLocked(p[n : n+k])
		n += k
		came := h.came
		h.mu.Unlock()
		if came != nil {
			came()
		}
		if n == len(p) {
			return n, nil
		}
	}
}

// Close ends both directions.
func (m *memory) Close() error {
	for _, h := range []*half{m.in, m.out} {
		h.mu.Lock()
		h.closed = true
		h.rd.stop()
		h.wd.stop()
		h.turn.Broadcast()
		var told func()
		if h == m.out {
			told = h.came
		}
		h.mu.Unlock()
		if told != nil {
			told()
		}
	}
	return nil
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// setLocked makes t the deadline.
func (h *half) setLocked(d *deadline, t time.Time) {
	d.stop()
	d.over = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.over = true
		h.turn.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.timer == timer {
			d.over = true
			h.turn.Broadcast()
		}
	})
	d.timer = timer
}

// SetDeadline sets both deadlines.
func (m *memory) SetDeadline(t time.Time) error {
	_ = m.SetReadDeadline(t)
	return m.SetWriteDeadline(t)
}

// SetReadDeadline bounds Read.
func (m *memory) SetReadDeadline(t time.Time) error {
	m.in.mu.Lock()
	defer m.in.mu.Unlock()
	m.in.setLocked(&m.in.rd, t)
	return nil
}

// SetWriteDeadline bounds Write.
func (m *memory) SetWriteDeadline(t time.Time) error {
	m.out.mu.Lock()
	defer m.out.mu.Unlock()
	m.out.setLocked(&m.out.wd, t)
	return nil
}

// LocalAddr returns a name: there is no address.
func (m *memory) LocalAddr() net.Addr { return memoryAddr{} }

// RemoteAddr returns a name: there is no address.
func (m *memory) RemoteAddr() net.Addr { return memoryAddr{} }

type memoryAddr struct{}

func (memoryAddr) Network() string { return "memory" }
func (memoryAddr) String() string  { return "memory" }

// pump carries a connection that no loop can wait for through memory.
func pump(conn net.Conn) *memory {
	near, far := newMemory()
	go func() {
		_, _ = io.Copy(far, conn)
		far.Close()
		conn.Close()
	}()
	go func() {
		_, _ = io.Copy(conn, far)
		far.Close()
		conn.Close()
	}()
	return near
}
