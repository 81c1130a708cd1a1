package main

import (
	"github.com/shardgram/shardgram/pgbounce"
	"golang.org/x/sys/unix"
)

// setSystemOptions sets those that only Linux has.
func setSystemOptions(set func(key string, level, option, value int) error, f *pgbounce.File) error {
	deferAccept := f.DeferAccept
	if deferAccept == 1 {
		deferAccept = 45 // as PgBouncer does: 1 is "on", not a second
	}
	if err := set("tcp_defer_accept", unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferAccept); err != nil {
		return err
	}
	return set("tcp_user_timeout", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(f.UserTimeout.Milliseconds()))
}
