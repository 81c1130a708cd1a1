//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
	"golang.org/x/sys/unix"
)

// listen opens all that clients come to.
func listen(ctx context.Context, f *pgbounce.File) (all []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	for _, name := range f.ListenAddrs {
		opened, err := listenTCP(ctx, f, name)
		all = append(all, opened...)
		if err != nil {
			return all, err
		}
	}
	if f.UnixDir != "" {
		l, err := listenUnix(ctx, f)
		if err != nil {
			return all, err
		}
		all = append(all, l)
	}
	if len(all) == 0 {
		return all, errors.New("nowhere to listen: want listen_addr or unix_socket_dir")
	}
	return all, nil
}

// listenTCP listens on all addresses of a name. One that this machine does not
// have, as ::1 without IPv6, is left out if there is another.
func listenTCP(ctx context.Context, f *pgbounce.File, name string) ([]net.Listener, error) {
	addrs := []string{""}
	if name != "*" {
		var err error
		if addrs, err = net.DefaultResolver.LookupHost(ctx, name); err != nil {
			return nil, fmt.Errorf("listen_addr: %w", err)
		}
	}
	lc := listenConfig(f)
	var all []net.Listener
	var absent error
	for _, addr := range addrs {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(f.Port)))
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT):
			absent = err
			continue
		case err != nil:
			return all, fmt.Errorf("listen_addr: %w", err)
		}
		all = append(all, l)
		if err := setBacklog(l, f.Backlog); err != nil {
			return all, fmt.Errorf("listen_backlog: %w", err)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("listen_addr: %w", absent)
	}
	return all, nil
}

// listenConfig has the options that the kernel hands on to each connection that
// is accepted.
func listenConfig(f *pgbounce.File) net.ListenConfig {
	lc := net.ListenConfig{KeepAliveConfig: f.KeepAlive}
	if !f.KeepAlive.Enable {
		lc.KeepAlive = -1
	}
	lc.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		control := func(fd uintptr) { err = setOptions(int(fd), f) }
		return errors.Join(c.Control(control), err)
	}
	return lc
}

func setOptions(fd int, f *pgbounce.File) error {
	set := func(key string, level, option, value int) error {
		if value == 0 {
			return nil
		}
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}
	reuse := 0
	if f.ReusePort {
		reuse = 1
	}
	return errors.Join(
		set("so_reuseport", unix.SOL_SOCKET, unix.SO_REUSEPORT, reuse),
		set("tcp_socket_buffer", unix.SOL_SOCKET, unix.SO_RCVBUF, f.SocketBuffer),
		set("tcp_socket_buffer", unix.SOL_SOCKET, unix.SO_SNDBUF, f.SocketBuffer),
		setSystemOptions(set, f),
	)
}

// setBacklog listens once more, as net has the system's largest backlog and no
// way to say another.
func setBacklog(l net.Listener, backlog int) error {
	raw, err := l.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var listenErr error
	err = raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), backlog) })
	return errors.Join(err, listenErr)
}

// listenUnix listens on a Unix socket, in the place of one that nobody serves
// any more.
func listenUnix(ctx context.Context, f *pgbounce.File) (net.Listener, error) {
	path := filepath.Join(f.UnixDir, ".s.PGSQL."+strconv.Itoa(f.Port))
	abstract := strings.HasPrefix(path, "@")
	if !abstract {
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("unix socket %s is in use, cannot continue", path)
		}
		if err := removeSocket(path); err != nil {
			return nil, fmt.Errorf("unix_socket_dir: %w", err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("unix_socket_dir: %w", err)
	}
	err = setBacklog(l, f.Backlog)
	if err == nil && !abstract {
		err = permit(path, f)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("unix socket %s: %w", path, err)
	}
	return l, nil
}

// removeSocket removes a socket, and nothing else that may be there.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is not a socket", path)
	}
	return os.Remove(path)
}

// permit gives a socket its mode and group.
func permit(path string, f *pgbounce.File) error {
	if f.UnixGroup != "" {
		g, err := user.LookupGroup(f.UnixGroup)
		if err != nil {
			return fmt.Errorf("unix_socket_group: %w", err)
		}
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return fmt.Errorf("unix_socket_group: %w", err)
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return fmt.Errorf("unix_socket_group: %w", err)
		}
	}
	return os.Chmod(path, f.UnixMode)
}
