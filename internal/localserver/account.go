package localserver

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// An account is the user that a server runs as.
type account struct {
	name     string
	uid, gid uint32
}

// accountFor returns the user for a kind of server, or nil for our own.
// PostgreSQL and PgBouncer refuse to run as root, and the others have no need
// to.
func accountFor(kind Kind) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	name := programs[kind].account
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("we are root and the server must not be: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
}

// own gives a path to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// reaches reports as an error that the account cannot enter a folder above
// dir. Without it, the server's own message is a bare "Permission denied".
func (a *account) reaches(dir string) error {
	if a == nil {
		return nil
	}
	var parents []string
	for p := dir; ; p = filepath.Dir(p) {
		parents = append(parents, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	for _, p := range slices.Backward(parents) {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		owner := info.Sys().(*syscall.Stat_t)
		enter := os.FileMode(0o001)
		switch {
		case owner.Uid == a.uid:
			enter = 0o100
		case owner.Gid == a.gid:
			enter = 0o010
		}
		if info.Mode().Perm()&enter == 0 {
			return fmt.Errorf("user %s, as whom the server runs because we are root, cannot enter %s (mode %04o): "+
				"use a folder elsewhere, for example below /var/lib, or allow it with chmod o+x %s",
				a.name, p, info.Mode().Perm(), p)
		}
	}
	return nil
}

// Reachable reports as an error that a folder lies where the users as whom
// servers run cannot get to it: below /root, for example, when we are root.
// The folder need not exist.
func Reachable(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("localserver: %w", err)
	}
	for {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			break
		}
		dir = filepath.Dir(dir)
	}
	for _, kind := range []Kind{KindPostgres, KindRedis} {
		account, err := accountFor(kind)
		if err == nil {
			err = account.reaches(dir)
		}
		if err != nil {
			return fmt.Errorf("localserver: %w", err)
		}
	}
	return nil
}
