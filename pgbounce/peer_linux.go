package pgbounce

import (
	"net"
	"os/user"
	"strconv"
	"syscall"
)

// isPeer tells whether the process at the other end of a Unix socket runs as
// the user.
func (b *Bouncer) isPeer(conn net.Conn, ident, name string) bool {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return false
	}
	var cred *syscall.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || cerr != nil {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(int(cred.Uid)))
	if err != nil {
		return false
	}
	if ident != "" {
		return b.config().Auth.HBA.allows(ident, u.Username, name)
	}
	return u.Username == name
}
