package pgbounce

import (
	"context"
	"net"
)

// serveConsole answers the console's commands until the client leaves.
func (b *Bouncer) serveConsole(ctx context.Context, s *startup, conn net.Conn, inProcess bool, stop func() bool) error {
	return fatal("0A000", "no console yet")
}

type consoles struct{}

func (*consoles) interrupt(cancelKey) bool { return false }
