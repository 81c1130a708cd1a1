package localserver

import (
	"context"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"
)

// Stop asks the server to end in good order and waits until it has. After
// five seconds, or when ctx ends, it is killed instead. Stopping a server that
// does not run is not an error.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stopLocked(ctx); err != nil {
		return fmt.Errorf("localserver: stop %s %s: %w", s.kind, s.name, err)
	}
	return nil
}

func (s *Server) stopLocked(ctx context.Context) error {
	p := s.process
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if !p.ended() {
		syscall.Kill(p.pid, programs[s.kind].stop)
		s.signalAll(syscall.SIGCONT) // a paused server reads the signal only now
		s.nudge()
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	return s.killLocked()
}

// nudge wakes memcached, which looks for a signal once a second unless
// something happens.
func (s *Server) nudge() {
	if s.kind != KindMemcached {
		return
	}
	if c, err := net.DialTimeout("tcp", s.Addr(), pingTimeout); err == nil {
		c.Close()
	}
}

// Kill ends every process of the server with SIGKILL and waits until they are
// gone. Killing a server that does not run is not an error.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.killLocked(); err != nil {
		return fmt.Errorf("localserver: kill %s %s: %w", s.kind, s.name, err)
	}
	return nil
}

func (s *Server) killLocked() error {
	p := s.process
	if p == nil {
		return nil
	}
	all := processes(s.logPath())
	if !p.ended() {
		syscall.Kill(-p.pid, syscall.SIGKILL)
		<-p.done // SIGKILL cannot be ignored
	}
	return s.killAll(all)
}

// killAll kills the given processes and any others of the server until there
// are none. It remembers them, because one that is about to end has closed its
// files already.
func (s *Server) killAll(pids []int) error {
	for deadline := time.Now().Add(grace); ; time.Sleep(poll) {
		pids = slices.DeleteFunc(append(pids, processes(s.logPath())...), gone)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Pause stops every process of the server where it stands (SIGSTOP). Its
// connections stay open and silent, as those of a machine that hangs.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.process.ended() {
		return fmt.Errorf("localserver: pause %s %s: it does not run", s.kind, s.name)
	}
	// Until all are seen to be stopped: the first round may have missed a
	// process that was being forked.
	for deadline := time.Now().Add(grace); ; time.Sleep(poll) {
		s.signalAll(syscall.SIGSTOP)
		if s.allStopped() {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("localserver: pause %s %s: its processes do not stop", s.kind, s.name)
		}
	}
}

func (s *Server) allStopped() bool {
	for _, pid := range processes(s.logPath()) {
		if !stopped(pid) {
			return false
		}
	}
	return stopped(s.process.pid)
}

// Resume lets a paused server go on.
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil || s.process.ended() {
		return fmt.Errorf("localserver: resume %s %s: it does not run", s.kind, s.name)
	}
	s.signalAll(syscall.SIGCONT)
	return nil
}

// signalAll signals the main process first, so that it cannot fork any more
// when we look for the others.
func (s *Server) signalAll(sig syscall.Signal) {
	syscall.Kill(-s.process.pid, sig)
	for _, pid := range processes(s.logPath()) {
		syscall.Kill(pid, sig)
	}
}

// Restart stops the server if it runs, starts it again on the same port and
// folder, and waits until it is ready.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin := time.Now()
	err := s.stopLocked(ctx)
	if err == nil {
		err = s.startLocked(ctx)
	}
	if err != nil {
		return fmt.Errorf("localserver: restart %s %s: %w", s.kind, s.name, err)
	}
	s.host.ready(s, begin)
	return nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
