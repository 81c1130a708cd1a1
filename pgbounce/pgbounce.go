package pgbounce

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Bouncer is a pooler. It is safe for concurrent use. Make it with New.
type Bouncer struct {
	cfg     atomic.Pointer[Config]
	start   time.Time
	tracked []string
	mockKey [32]byte

	statements statements
	cancels    cancels
	scrams     scrams
	consoles   consoles
	ids        atomic.Uint64

	clientCount atomic.Int64
	closing     atomic.Bool
	paused      atomic.Bool // all databases are, and those that come
	suspended   atomic.Bool

	// life ends with Close, and with it everything that goroutines wait for.
	life       context.Context
	die        context.CancelFunc
	goroutines sync.WaitGroup

	mu        sync.Mutex
	databases map[string]*database
	accounts  map[string]*account
	askers    map[string]*asker
	loops     []*loop
	listeners map[net.Listener]struct{}
	clients   map[*client]struct{}
	logins    map[net.Conn]struct{}
	closed    bool
	looked    struct{ at, used time.Duration } // when the janitor looked at the loops, and the processor time then
	empty     chan struct{}                    // signalled when a client has left
}

// New returns a Bouncer. It connects to nothing and starts nothing before the
// first client comes.
func New(cfg Config) (*Bouncer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Bouncer{
		start: time.Now(), databases: map[string]*database{}, accounts: map[string]*account{},
		askers: map[string]*asker{}, listeners: map[net.Listener]struct{}{}, clients: map[*client]struct{}{}, logins: map[net.Conn]struct{}{},
		empty: make(chan struct{}, 1),
	}
	b.tracked = slices.Clone(alwaysTracked)
	for _, name := range cfg.TrackParameters {
		if b.trackedIndex(name) < 0 {
			b.tracked = append(b.tracked, name)
		}
	}
	_, _ = rand.Read(b.mockKey[:])
	b.cfg.Store(&cfg)
	b.life, b.die = context.WithCancel(context.Background())
	for name, db := range cfg.Databases {
		if name != "*" {
			b.addDatabaseLocked(name, db, false)
		}
	}
	return b, nil
}

func (b *Bouncer) config() *Config { return b.cfg.Load() }

func (b *Bouncer) log() *slog.Logger { return b.config().Log }

// clock is the time since New. It never goes back.
func (b *Bouncer) clock() time.Duration { return time.Since(b.start) }

func (b *Bouncer) nextID() uint64 { return b.ids.Add(1) }

// ErrClosed is returned after Close, or after a Shutdown has begun.
var ErrClosed = errors.New("pgbounce: closed")

// Serve lets clients in that come to a listener, until the listener is closed,
// ctx ends, or the Bouncer is shut down: then it closes the listener and
// returns. Clients that are in stay. Several listeners may be served at a time.
func (b *Bouncer) Serve(ctx context.Context, l net.Listener) error {
	if err := b.begin(); err != nil {
		return err
	}
	b.mu.Lock()
	b.listeners[l] = struct{}{}
	b.mu.Unlock()
	if b.closing.Load() {
		l.Close()
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer func() {
		b.mu.Lock()
		delete(b.listeners, l)
		b.mu.Unlock()
	}()
	var pause time.Duration
	for {
		conn, err := l.Accept()
		if err != nil {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case b.closing.Load():
				return ErrClosed
			case errors.Is(err, net.ErrClosed):
				return fmt.Errorf("pgbounce: serve: %w", err)
			}
			// Out of file descriptors, most likely: it passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			b.log().Error("pgbounce: accept failed", "error", err.Error())
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		b.login(conn, false)
	}
}

// minLogins is how many may be logging in at the same time, if more clients
// are not allowed anyway. Cancel requests count here, and not as clients.
const minLogins = 1000

// login serves a connection on a goroutine of its own.
func (b *Bouncer) login(conn net.Conn, inProcess bool) {
	b.mu.Lock()
	if b.closed || len(b.logins) >= max(b.config().MaxClients, minLogins) {
		b.mu.Unlock()
		conn.Close()
		return
	}
	b.logins[conn] = struct{}{}
	b.goroutines.Add(1)
	b.mu.Unlock()
	go func() {
		defer b.goroutines.Done()
		defer func() {
			b.mu.Lock()
			delete(b.logins, conn)
			b.mu.Unlock()
			if r := recover(); r != nil {
				b.log().Error("pgbounce: bug: panic in a login", "panic", r)
				conn.Close()
			}
		}()
		b.serve(conn, inProcess)
	}()
}

// Dial connects to the Bouncer inside this process, without a socket. Network
// and address are not used: it is a pgconn.DialFunc, for the ConnConfig of a
// pgxpool.Config. Such clients are not asked for a password, and are admins of
// the console; set sslmode=disable for them.
func (b *Bouncer) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if err := b.begin(); err != nil {
		return nil, err
	}
	near, far := newMemory()
	b.login(far, true)
	return near, nil
}

// spawn runs fn on a goroutine that Close waits for, unless it has begun.
func (b *Bouncer) spawn(fn func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.goroutines.Go(fn)
	return true
}

// begin starts the first loop and the janitor with the first use.
func (b *Bouncer) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.closing.Load() {
		return ErrClosed
	}
	if len(b.loops) > 0 {
		return nil
	}
	if err := b.addLoopLocked(); err != nil {
		return err
	}
	b.goroutines.Go(b.janitor)
	return nil
}

func (b *Bouncer) addLoopLocked() error {
	l, err := newLoop(b, len(b.loops))
	if err != nil {
		return fmt.Errorf("pgbounce: start a loop: %w", err)
	}
	b.loops = append(b.loops, l)
	go l.run()
	return nil
}

// maxLoops returns how many loops there may be.
func (b *Bouncer) maxLoops() int {
	if n := b.config().Loops; n > 0 {
		return n
	}
	return runtime.GOMAXPROCS(0)
}

// pickLoop returns the loop with the fewest clients.
func (b *Bouncer) pickLoop() *loop {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.MinFunc(b.loops, func(x, y *loop) int { return int(x.load.Load() - y.load.Load()) })
}

// enter notes a client that is logged in.
func (b *Bouncer) enter(c *client, l *loop) {
	l.load.Add(1)
	c.home.Store(l)
	b.mu.Lock()
	b.clients[c] = struct{}{}
	b.mu.Unlock()
	b.logClient(c, "login attempt: db="+c.database+" user="+c.user)
}

// gone notes a client that has left.
func (b *Bouncer) gone(c *client) {
	b.cancels.remove(c)
	if l := c.home.Load(); l != nil {
		l.load.Add(-1)
	}
	b.mu.Lock()
	delete(b.clients, c)
	b.mu.Unlock()
	c.release()
	b.leave()
}

// Close ends everything at once: clients are disconnected in the middle of what
// they do. It waits until all is gone. A second Close does nothing.
func (b *Bouncer) Close() error {
	b.closing.Store(true)
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		b.goroutines.Wait()
		return nil
	}
	b.closed = true
	for l := range b.listeners {
		l.Close()
	}
	for conn := range b.logins {
		_ = conn.SetDeadline(time.Unix(1, 0))
	}
	loops := slices.Clone(b.loops)
	askers := b.askers
	b.mu.Unlock()
	b.die()
	b.goroutines.Wait()
	for _, c := range b.allClients() {
		if l := c.home.Load(); l != nil {
			l.call(func() { c.fail(fatal("57P01", "pooler is shutting down")); c.end(nil) })
		}
	}
	for _, p := range b.allPools() {
		p.shut()
	}
	for _, l := range loops {
		l.closed.Store(true)
		l.post(func() {})
		<-l.done
	}
	b.goroutines.Wait()
	for _, a := range askers {
		if a.conn != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = a.conn.Close(ctx)
			cancel()
		}
	}
	return nil
}

func (b *Bouncer) allClients() []*client {
	b.mu.Lock()
	defer b.mu.Unlock()
	clients := make([]*client, 0, len(b.clients))
	for c := range b.clients {
		clients = append(clients, c)
	}
	return clients
}

func (b *Bouncer) logClient(c *client, what string) {
	if !b.config().QuietConnections {
		b.log().Info("pgbounce: client "+what, "client", c.id, "database", c.database, "user", c.user, "addr", c.addr.String())
	}
}

// logError logs why a client is disconnected.
func (b *Bouncer) logError(c *client, why string) {
	if cfg := b.config(); !cfg.QuietConnections || !cfg.QuietErrors {
		b.log().Warn("pgbounce: client closing because: "+why, "client", c.id, "database", c.database, "user", c.user, "addr", c.addr.String())
	}
}

func (b *Bouncer) logServer(s *server, what string) {
	if !b.config().QuietConnections {
		b.log().Info("pgbounce: server "+what, "server", s.id, "database", s.pool.db.name, "user", s.pool.as, "addr", s.target)
	}
}

func (b *Bouncer) logLogin(conn net.Conn, s *startup, why string) {
	if cfg := b.config(); cfg.QuietConnections && cfg.QuietErrors {
		return
	}
	user, database := "", ""
	if s != nil {
		user, database = s.user, s.database
	}
	b.log().Warn("pgbounce: login failed", "addr", conn.RemoteAddr().String(), "user", user, "database", database, "reason", why)
}
