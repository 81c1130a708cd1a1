//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package idgen

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks a file that nobody has locked, else it returns ErrHeld.
func lockFile(f *os.File) error {
	for {
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrHeld
		case !errors.Is(err, syscall.EINTR):
			return err
		}
	}
}

func unlockFile(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
