//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
)

// A process is a Bouncer and what is around it.
type process struct {
	options options
	log     *slog.Logger
	logs    *logs
	bouncer *pgbounce.Bouncer
	nodes   *nodes         // of the catalog of shards, nil without one
	console chan os.Signal // what a SHUTDOWN of the console stands for

	tasks    sync.WaitGroup // of signals that take their time
	stopping atomic.Bool    // a TERM or INT has come
	yield    func()         // then, so that a process that shares our address answers there, or nil

	mu   sync.Mutex // signals and the console change the file
	file pgbounce.File
}

// serve lets clients in until it is told to stop.
func serve(ctx context.Context, o options, f pgbounce.File, stderr io.Writer, signals <-chan os.Signal, ready *readiness) (err error) {
	if err := become(f.User); err != nil {
		return err
	}
	p := &process{options: o, console: make(chan os.Signal, 1)}
	if p.logs, err = openLogs(o, &f, stderr); err != nil {
		return err
	}
	defer p.logs.close()
	p.log = p.logs.logger()
	p.file = p.configured(f)
	p.warn(f.Warnings)
	if o.reboot {
		p.log.Warn("pgbounce: -R has no effect: start a second process with so_reuseport and peers, then stop the first")
	}
	if os.Getuid() == 0 {
		p.log.Warn("pgbounce: running as root: set user, or use -u")
	}
	if p.nodes, err = openNodes(ctx, f.ShardCatalog); err != nil {
		return err
	}
	defer p.nodes.close()
	if err := p.configure(p.file.Config); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.bouncer.Close()) }()

	listeners, err := listen(ctx, &f)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	stopMetrics, err := p.serveMetrics(ctx, &f)
	if err != nil {
		return err
	}
	defer stopMetrics()
	if f.ReusePort {
		p.yield = stopMetrics
	}
	if err := writePID(f.PIDFile); err != nil {
		return err
	}
	defer removePID(f.PIDFile)

	// Whatever ends this function ends the goroutines that it has started.
	ctx, stop := context.WithCancel(ctx)
	var serving sync.WaitGroup
	served := make(chan error, len(listeners))
	defer func() {
		stop()
		serving.Wait()
		p.tasks.Wait()
	}()
	for _, l := range listeners {
		p.log.Info("pgbounce: listening", "addr", l.Addr().String())
		serving.Go(func() { served <- p.bouncer.Serve(ctx, l) })
	}
	if p.nodes != nil {
		serving.Go(func() { p.followNodes(ctx) })
	}
	p.log.Info("pgbounce: process up", "version", version(), "pid", os.Getpid())
	ready.done()
	tellSystemd("READY=1")
	return p.attend(ctx, signals, served, len(listeners))
}

// attend does what signals say until all listeners are through.
func (p *process) attend(ctx context.Context, signals <-chan os.Signal, served <-chan error, left int) error {
	var failed error
	drained := make(chan error, 1)
	statistics := p.ticker()
	last, lastAt := p.bouncer.Stats(), time.Now()
	defer func() { statistics.Stop() }()
	for left > 0 || p.stopping.Load() {
		select {
		case <-ctx.Done():
			p.log.Info("pgbounce: fast exit")
			return nil
		case err := <-served:
			left--
			if !p.stopping.Load() && !errors.Is(err, pgbounce.ErrClosed) {
				p.log.Error("pgbounce: a listener has failed", "error", err)
				failed = errors.Join(failed, err)
			}
		case err := <-drained:
			p.log.Info("pgbounce: all have left")
			return err
		case <-statistics.C:
			now, at := p.bouncer.Stats(), time.Now()
			p.log.Info("pgbounce: " + statsLine(last, now, at.Sub(lastAt)))
			last, lastAt = now, at
		case s := <-p.console:
			if p.signalled(ctx, s, drained) {
				return failed
			}
		case s := <-signals:
			if p.signalled(ctx, s, drained) {
				return failed
			}
			statistics.Stop()
			statistics = p.ticker()
		}
	}
	return failed
}

// ticker ticks when statistics are to be logged.
func (p *process) ticker() *time.Ticker {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.file.LogStats || p.file.StatsPeriod <= 0 {
		t := time.NewTicker(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTicker(p.file.StatsPeriod)
}

// signalled does what a signal says, and tells whether to end at once.
func (p *process) signalled(ctx context.Context, s os.Signal, drained chan<- error) bool {
	switch s {
	case syscall.SIGHUP:
		p.log.Info("pgbounce: got SIGHUP, reading the configuration again")
		_ = p.reload(ctx) // it is in the log
	case syscall.SIGUSR1:
		p.log.Info("pgbounce: got SIGUSR1, pausing all activity")
		p.tasks.Go(func() {
			if err := p.bouncer.Pause(ctx, ""); err != nil && ctx.Err() == nil {
				p.log.Error("pgbounce: not paused", "error", err)
			}
		})
	case syscall.SIGUSR2:
		p.log.Info("pgbounce: got SIGUSR2, continuing")
		if err := p.bouncer.Resume(""); err != nil {
			p.log.Error("pgbounce: not resumed", "error", err)
		}
	case syscall.SIGTERM, syscall.SIGINT:
		if p.stopping.Load() {
			p.log.Info("pgbounce: got a second signal while shutting down, fast exit")
			return true
		}
		if s == syscall.SIGINT {
			p.log.Info("pgbounce: got SIGINT, shutting down, waiting for all servers connections to be released")
			p.drain(ctx, p.bouncer.Shutdown, drained)
		} else {
			p.log.Info("pgbounce: got SIGTERM, shutting down, waiting for all clients disconnect")
			p.drain(ctx, p.bouncer.ShutdownClients, drained)
		}
	default:
		p.log.Info("pgbounce: got SIGQUIT, fast exit")
		return true
	}
	return false
}

// drain lets nobody in any more, and waits for those who are.
func (p *process) drain(ctx context.Context, wait func(context.Context) error, drained chan<- error) {
	p.stopping.Store(true)
	if p.yield != nil {
		p.yield()
	}
	tellSystemd("STOPPING=1")
	p.tasks.Go(func() {
		err := wait(ctx)
		if ctx.Err() != nil {
			err = nil // a second signal was faster
		}
		drained <- err
	})
}

// configured returns a file with what a Bouncer needs of this process.
func (p *process) configured(f pgbounce.File) pgbounce.File {
	if p.options.user != "" {
		f.User = p.options.user
	}
	f.Config.Log = p.log
	f.Config.Admin = pgbounce.AdminHooks{Reload: p.reload, Settings: p.settings, Set: p.set, Stop: p.stop}
	return f
}

// reload reads the file again. If it is broken, all stays as it is.
func (p *process) reload(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := pgbounce.ReadINI(p.file.Path)
	var kept []string
	if err == nil {
		next = p.configured(next)
		kept = next.Keep(&p.file)
		err = p.configure(next.Config)
	}
	if err != nil {
		p.log.Error("pgbounce: not reloaded", "error", err)
		return err
	}
	err = p.use(next)
	p.warn(next.Warnings)
	if len(kept) > 0 {
		p.log.Warn("pgbounce: changed, but waits for a restart: " + strings.Join(kept, ", "))
	}
	return err
}

// use takes over a file that the Bouncer has got.
func (p *process) use(next pgbounce.File) error {
	p.file = next
	err := p.logs.reopen(p.options, &next)
	if err != nil {
		p.log.Error("pgbounce: log not reopened", "error", err)
	}
	return err
}

func (p *process) settings() [][4]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file.Settings()
}

// set changes a setting until the next reload.
func (p *process) set(key, value string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.file
	err := next.Set(key, value)
	if err == nil {
		err = p.configure(next.Config)
	}
	if err != nil {
		return err
	}
	return p.use(next)
}

// stop does what a SHUTDOWN of the console says.
func (p *process) stop(after string) {
	s := syscall.SIGQUIT
	switch after {
	case "transactions":
		s = syscall.SIGINT
	case "clients":
		s = syscall.SIGTERM
	}
	select {
	case p.console <- s:
	default: // there is one on its way
	}
}

func (p *process) warn(warnings []string) {
	for _, w := range warnings {
		p.log.Warn("pgbounce: " + w)
	}
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close() // most are closed by now
	}
}
