//go:build !linux

package pgbounce

import "net"

// isPeer is false where the system does not tell.
func (b *Bouncer) isPeer(net.Conn, string, string) bool { return false }
