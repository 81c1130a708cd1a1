package localserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// MemcachedConfig says how a memcached differs from our defaults.
type MemcachedConfig struct {
	// Memory is the space for items, in megabytes.
	// Default: 64.
	Memory int

	// Args are further arguments of the program, such as "-I", "2m".
	// Default: none.
	Args []string
}

// A Memcached is a memcached server. It is safe for concurrent use.
type Memcached struct {
	Server
}

// Memcached starts a memcached server.
func (h *Host) Memcached(ctx context.Context, name string, cfg MemcachedConfig) (*Memcached, error) {
	if cfg.Memory < 0 {
		return nil, fmt.Errorf("localserver: start memcached %s: Memory is negative: %d", name, cfg.Memory)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 64
	}
	m := &Memcached{}
	m.args = func() []string {
		args := append([]string{"-m", strconv.Itoa(cfg.Memory)}, cfg.Args...)
		return append(args, "-l", "127.0.0.1", "-p", strconv.Itoa(m.Port()), "-U", "0")
	}
	m.ping = m.statsPID
	setUp := func(context.Context) error { return nil } // it keeps nothing on disk
	if err := h.add(ctx, &m.Server, KindMemcached, name, setUp); err != nil {
		return nil, err
	}
	return m, nil
}

// statsPID succeeds when the process that we started answers: another may
// have taken the port.
func (m *Memcached) statsPID(ctx context.Context, pid int) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", m.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := fmt.Fprint(c, "stats\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n') // STAT pid 123
	if err != nil {
		return err
	}
	if strings.TrimSpace(line) != "STAT pid "+strconv.Itoa(pid) {
		return fmt.Errorf("%s is not process %d: %q", m.Addr(), pid, line)
	}
	return nil
}
