//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package idgen

import (
	"errors"
	"os"
)

func lockFile(*os.File) error { return errors.ErrUnsupported }

func unlockFile(*os.File) error { return nil }
