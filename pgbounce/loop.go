package pgbounce

import (
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// A loop forwards for many clients, one at a time. A client stays on the loop
// it was given to, and a server is on that of its client, so that neither needs
// a lock of its own: all they do, they do under the loop's.
//
// Its thread usually holds that lock. A goroutine of an in-process client that
// finds it free runs its client itself, which saves the way to another thread.
type loop struct {
	b      *Bouncer
	number int
	poller *poller

	mu    sync.Mutex
	wires []*wire  // by file descriptor
	turn  []*wire  // those that have it now
	again []*wire  // those that have more to read, for the next turn
	tasks []func() // for the next turn as well
	spare [][]byte // empty buffers of heldSize
	buf   []byte   // for one read
	out   builder  // for one write
	now   time.Duration
	moved *server // the last one that went to another loop
	depth int     // of links made inside one another

	posts struct {
		sync.Mutex
		fns []func()
	}
	asleep atomic.Bool
	closed atomic.Bool
	done   chan struct{}
	load   atomic.Int64 // clients
	busy   atomic.Int64 // nanoseconds it has not slept
}

// bufSize is how much is read at once. It bounds what a slow reader makes the
// Bouncer keep.
const bufSize = 64 << 10

func newLoop(b *Bouncer, number int) (*loop, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &loop{b: b, number: number, poller: p, buf: make([]byte, bufSize), done: make(chan struct{})}, nil
}

// run is the loop's thread.
func (l *loop) run() {
	defer close(l.done)
	defer l.poller.close()
	begin := time.Now()
	for {
		n := l.poller.poll()
		if n == 0 {
			l.asleep.Store(true)
			if l.idle() {
				l.busy.Add(int64(time.Since(begin)))
				n = l.poller.wait()
				begin = time.Now()
			}
			l.asleep.Store(false)
		}
		l.mu.Lock()
		l.now = l.b.clock()
		for i := range n {
			fd, readable, writable, ended := l.poller.event(i)
			if fd == l.poller.fd() {
				l.poller.woken()
			} else if fd < len(l.wires) && l.wires[fd] != nil {
				w := l.wires[fd]
				w.ended = w.ended || ended
				w.event(readable, writable)
			}
		}
		if l.turn = l.again; len(l.turn) > 0 {
			l.again = nil
			for i := range l.turn {
				if w := l.turn[i]; w != nil {
					w.queued = false
					w.event(false, false)
				}
			}
			l.turn = nil
		}
		if tasks := l.tasks; len(tasks) > 0 {
			l.tasks = nil
			for _, task := range tasks {
				l.protect(task)
			}
		}
		l.drain()
		stop := l.closed.Load()
		l.mu.Unlock()
		if stop {
			return
		}
	}
}

// idle tells whether there is nothing to do. It is asked with asleep set, so
// that whoever comes after it wakes the loop.
func (l *loop) idle() bool {
	l.posts.Lock()
	posted := len(l.posts.fns)
	l.posts.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return posted+len(l.again)+len(l.tasks) == 0 && !l.closed.Load()
}

// drain runs what was posted.
func (l *loop) drain() {
	for {
		l.posts.Lock()
		fns := l.posts.fns
		l.posts.fns = nil
		l.posts.Unlock()
		if len(fns) == 0 {
			return
		}
		for _, fn := range fns {
			l.protect(fn)
		}
	}
}

// protect runs fn. A panic in it ends neither the loop nor the caller.
func (l *loop) protect(fn func()) {
	defer l.guard("task", func() {})
	fn()
}

// post has fn run by the loop, in the order of posts.
func (l *loop) post(fn func()) {
	l.posts.Lock()
	l.posts.fns = append(l.posts.fns, fn)
	l.posts.Unlock()
	if l.asleep.CompareAndSwap(true, false) {
		l.poller.wake()
	}
}

// do runs fn at once if the loop is free, and posts it if not. The caller holds
// no locks.
func (l *loop) do(fn func()) {
	if !l.mu.TryLock() {
		l.post(fn)
		return
	}
	l.now = l.b.clock()
	l.protect(fn)
	l.drain()
	more := len(l.again) > 0 || len(l.tasks) > 0
	l.mu.Unlock()
	if more && l.asleep.CompareAndSwap(true, false) {
		l.poller.wake()
	}
}

// later runs task in the loop's next turn. The caller is on the loop.
func (l *loop) later(task func()) { l.tasks = append(l.tasks, task) }

// call runs fn on the loop and waits for it. The caller holds no locks.
func (l *loop) call(fn func()) {
	done := make(chan struct{})
	l.do(func() {
		defer close(done)
		fn()
	})
	<-done
}

// attach makes the loop the one that a wire belongs to.
func (l *loop) attach(w *wire) error {
	if w.loop != l {
		w.loop = l
	}
	if w.fd < 0 {
		w.mem.notify(func() { l.do(func() { w.event(true, false) }) }, func() { l.do(func() { w.event(false, true) }) })
		return nil
	}
	for len(l.wires) <= w.fd {
		l.wires = append(l.wires, nil)
	}
	l.wires[w.fd] = w
	return l.poller.add(w.fd)
}

func (l *loop) detach(w *wire) {
	for _, list := range [][]*wire{l.turn, l.again} {
		for i := range list {
			if list[i] == w {
				list[i] = nil
			}
		}
	}
	w.queued = false
	if w.fd >= 0 && w.fd < len(l.wires) && l.wires[w.fd] == w {
		l.wires[w.fd] = nil
		l.poller.remove(w.fd)
	}
}

// guard keeps a panic in one connection from ending all others: it is a
// mistake of this package, or a message nobody has thought of.
func (l *loop) guard(what string, lost func()) {
	if r := recover(); r != nil {
		l.b.log().Error("pgbounce: bug: panic", slog.String("at", what), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
		l.out.reset()
		lost()
	}
}

// A builder collects one write. Parts that lie side by side in memory, as
// messages that are passed on unchanged do, are not copied.
type builder struct {
	direct []byte
	copied []byte
}

func (b *builder) add(p []byte) {
	switch n := len(b.direct); {
	case len(p) == 0:
	case len(b.copied) > 0:
		b.copied = append(b.copied, p...)
	case n == 0:
		b.direct = p
	case cap(b.direct) >= n+len(p) && &b.direct[:n+1][n] == &p[0]:
		b.direct = b.direct[:n+len(p)]
	default:
		b.copied = append(append(b.copied, b.direct...), p...)
		b.direct = nil
	}
}

func (b *builder) bytes() []byte {
	if len(b.copied) > 0 {
		return b.copied
	}
	return b.direct
}

func (b *builder) reset() {
	b.direct = nil
	if cap(b.copied) > 2*bufSize {
		b.copied = nil
	}
	b.copied = b.copied[:0]
}
