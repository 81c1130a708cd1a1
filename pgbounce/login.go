package pgbounce

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"time"
)

// serve logs a client in and gives it to a loop. It runs on a goroutine of its
// own, which ends with the login.
func (b *Bouncer) serve(conn net.Conn, inProcess bool) {
	ctx, cancel := context.WithCancel(b.life)
	defer cancel()
	if limit := b.config().ClientLoginTimeout; limit > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fatal("08P01", "client_login_timeout"))
		defer cancel()
	}
	bare := conn
	stop := context.AfterFunc(ctx, func() { _ = bare.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	s, err := b.readStartup(conn)
	if err == nil && s.cancel != nil {
		b.serveCancel(ctx, s)
		return
	}
	if s != nil && s.conn != nil {
		conn = s.conn
	}
	counted := false
	if err == nil {
		if err = b.admit(s.database == "pgbouncer"); err == nil {
			counted = true
			err = b.logIn(ctx, s, conn, inProcess, stop)
		}
	}
	if err == nil {
		return
	}
	if counted {
		b.leave()
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, errHandedOver) {
		err = cause
		_ = conn.SetDeadline(time.Now().Add(time.Second))
	}
	if e, ok := errors.AsType[*wireError](err); ok {
		p := e.raw
		if p == nil {
			p = appendError(nil, 'E', "FATAL", e.code, e.message)
		}
		_, _ = conn.Write(p)
		b.logLogin(bare, s, e.message)
	} else if !errors.Is(err, errHandedOver) {
		b.logLogin(bare, s, err.Error())
	}
	conn.Close()
	bare.Close()
}

var errHandedOver = errors.New("pgbounce: the connection was served by the console")

// admit counts one client more, unless there are too many.
func (b *Bouncer) admit(console bool) error {
	limit := int64(b.config().MaxClients)
	if console {
		limit += 16 // it is wanted most when all places are taken
	}
	if b.clientCount.Add(1) > limit {
		b.leave()
		return fatal("53300", "no more connections allowed (max_client_conn)")
	}
	if b.closing.Load() {
		b.leave()
		return fatal("57P01", "pooler is shutting down")
	}
	return nil
}

// leave counts one client less, and tells who waits for the last one.
func (b *Bouncer) leave() {
	b.clientCount.Add(-1)
	select {
	case b.empty <- struct{}{}:
	default:
	}
}

// logIn lets a client in, or says why not.
func (b *Bouncer) logIn(ctx context.Context, s *startup, conn net.Conn, inProcess bool, stop func() bool) error {
	if s.negotiate {
		if _, err := conn.Write(s.negotiation()); err != nil {
			return err
		}
	}
	if t := b.config().ClientTLS; t.Mode >= TLSRequire && !inProcess && conn.LocalAddr().Network() == "tcp" {
		if _, ok := conn.(*tls.Conn); !ok {
			return fatal("08P01", "SSL required")
		}
	}
	login, err := b.authenticate(ctx, s, conn, inProcess)
	if err != nil {
		return err
	}
	if s.database == "pgbouncer" {
		return b.serveConsole(ctx, s, conn, inProcess, stop)
	}
	d := b.database(s.database)
	if d == nil {
		return fatal("3D000", "no such database: %s", s.database)
	}
	if d.disabled.Load() {
		return fatal("3D000", "database %s is disabled", s.database)
	}
	p := b.poolOf(d, s.user, 0, login)
	if s.replication != "" {
		p = b.replicationPool(d, p, s.replication)
	}
	release, err := b.seat(d, s.user)
	if err != nil {
		return err
	}
	w, err := p.hello(ctx)
	if err != nil {
		release()
		if e, ok := errors.AsType[*wireError](err); ok {
			return fatal(e.code, "server login failed: %s", e.message)
		}
		return fatal("08006", "server login has been failing: %v", publicError(err))
	}
	c := &client{
		b: b, pool: p, mode: p.mode, user: s.user, database: s.database, login: login,
		addr: conn.RemoteAddr(), local: conn.LocalAddr(), id: b.nextID(), release: release,
	}
	if err := c.apply(s, w); err != nil {
		release()
		return err
	}
	c.mapping = c.mode != Session && b.config().MaxPreparedStatements > 0
	b.cancels.add(c, b.config().PeerID)
	if s.minor >= 2 {
		var more [28]byte
		_, _ = rand.Read(more[:])
		c.key.secret += string(more[:])
	}
	if _, err := conn.Write(w.greeting(c)); err != nil {
		b.cancels.remove(c)
		release()
		return err
	}
	if !stop() {
		b.cancels.remove(c)
		release()
		return context.Cause(ctx)
	}
	_ = conn.SetDeadline(time.Time{})
	return b.hand(c, conn)
}

// hand gives a client that is logged in to a loop.
func (b *Bouncer) hand(c *client, conn net.Conn) error {
	if err := c.wire.take(conn); err != nil {
		b.cancels.remove(c)
		c.release()
		return err
	}
	c.on = c
	_, c.tlsOn = conn.(*tls.Conn)
	p := c.pool
	p.stats.logins.Add(1)
	l := b.pickLoop()
	b.enter(c, l)
	l.do(func() {
		c.connected, c.idleSince, c.requested = l.now, l.now, l.now
		c.params.names = b.tracked
		if err := l.attach(&c.wire); err != nil {
			c.lost(err)
			return
		}
		c.readable = true
		c.flow()
	})
	return nil
}

// greeting returns what a client is told after it has logged in.
func (w *welcome) greeting(c *client) []byte {
	p := append(appendHeader(nil, 'R', 4), 0, 0, 0, 0)
	for _, name := range w.names {
		value := w.values[name]
		if i := c.b.trackedIndex(name); i >= 0 && i < len(c.params.values) {
			value = c.params.values[i]
		}
		p = appendParameter(p, name, value)
	}
	p = appendHeader(p, 'K', 4+len(c.key.secret))
	p = append(binary.BigEndian.AppendUint32(p, c.key.pid), c.key.secret...)
	return appendReady(p, 'I')
}

// publicError returns what clients may be told of an error: what PostgreSQL
// says, and no addresses.
func publicError(err error) string {
	if e, ok := errors.AsType[*wireError](err); ok {
		return e.message
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return "connect timeout"
	}
	return "cannot connect to PostgreSQL"
}

// seat counts a client of a database and a user.
func (b *Bouncer) seat(d *database, user string) (release func(), err error) {
	cfg := b.config()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.databases[d.name] != d {
		return nil, fatal("57P01", "database removed")
	}
	if limit := size(d.config().MaxClients, cfg.MaxDatabaseClients); limit > 0 && d.clients >= limit {
		return nil, fatal("53300", "client connections exceeded (max_db_client_connections)")
	}
	a := b.account(user)
	if limit := size(cfg.Users[user].MaxClients, cfg.MaxUserClients); limit > 0 && a.clients >= limit {
		return nil, fatal("53300", "client connections exceeded (max_user_client_connections)")
	}
	d.clients++
	a.clients++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		d.clients--
		a.clients--
	}, nil
}

// serveCancel does what a cancel request asks for. Its connection is open until
// that is done, because the sender waits for its end.
func (b *Bouncer) serveCancel(ctx context.Context, s *startup) {
	defer s.conn.Close()
	if b.consoles.interrupt(*s.cancel) {
		return
	}
	c := b.cancels.find(*s.cancel)
	if c == nil {
		b.forwardCancel(ctx, *s.cancel)
		return
	}
	done := make(chan struct{})
	if l := c.home.Load(); l != nil {
		l.do(func() { c.cancel(func() { close(done) }) })
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// forwardCancel passes a request on to the peer whose client it is about.
func (b *Bouncer) forwardCancel(ctx context.Context, key cancelKey) {
	cfg := b.config()
	if cfg.PeerID == 0 || len(key.secret) < 2 {
		return
	}
	id := int(binary.BigEndian.Uint16([]byte(key.secret)))
	peer, ok := cfg.Peers[id]
	if !ok || id == cfg.PeerID {
		return
	}
	network, addr, _ := Database{Port: peer.Port}.address(peer.Host)
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = writeCancel(conn, key)
}

// mayUseConsole tells what a user may do there.
func (b *Bouncer) mayUseConsole(user string, inProcess bool) (admin, look bool) {
	cfg := b.config()
	admin = inProcess || slices.Contains(cfg.Admins, user)
	return admin, admin || cfg.Auth.Type == "any" || slices.Contains(cfg.Watchers, user)
}
