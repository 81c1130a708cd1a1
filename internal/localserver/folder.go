package localserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	lockName        = ".lock"
	temporaryPrefix = "shardgram-"
	guardTimeout    = 10 * time.Second // for the guard of a process that died
)

// An InUseError says that another process has opened the folder.
type InUseError struct {
	Dir string
	PID int // of the process that holds it, 0 if not known
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return e.Dir + " is in use by another process"
	}
	return fmt.Sprintf("%s is in use by process %d", e.Dir, e.PID)
}

// makeFolder makes dir if need be and locks it.
func makeFolder(dir string) (string, *os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	// The servers see their folder without links: so should we.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", nil, err
	}
	lock, err := lockFolder(dir)
	return dir, lock, err
}

// makeTemporary makes a new folder that sweep may remove once we are gone.
func makeTemporary() (string, *os.File, error) {
	for {
		dir, err := os.MkdirTemp("", temporaryPrefix)
		if err != nil {
			return "", nil, err
		}
		// MkdirTemp leaves 0700, which other users' servers cannot cross.
		if err := os.Chmod(dir, 0o711); err != nil {
			return "", nil, err
		}
		dir, lock, err := makeFolder(dir)
		if err == nil && stillThere(lock) {
			return dir, lock, nil
		}
		// A sweep in another process came between the folder and the lock.
		if inUse := new(InUseError); err != nil && !errors.As(err, &inUse) && !errors.Is(err, os.ErrNotExist) {
			return "", nil, err
		}
		lock.Close()
	}
}

// sweep removes the temporary folders of processes that no longer exist:
// nobody holds their lock.
func sweep() {
	locks, _ := filepath.Glob(filepath.Join(os.TempDir(), temporaryPrefix+"*", lockName))
	for _, path := range locks {
		dir := filepath.Dir(path)
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		if lock, err := lockFile(path, os.O_RDWR|syscall.O_NOFOLLOW); err == nil {
			removeFolder(dir)
			unlock(lock)
		}
	}
}

// removeFolder removes a host's folder, whose servers no longer run, with the
// shared memory of those that were killed: a few bytes each, but a system has
// only some thousand such segments.
func removeFolder(dir string) error {
	pidFiles, _ := filepath.Glob(filepath.Join(dir, "*", "data", "postmaster.pid"))
	for _, path := range pidFiles {
		text, _ := os.ReadFile(path)
		lines := strings.Split(string(text), "\n")
		if len(lines) < 7 {
			continue
		}
		if key, id, ok := strings.Cut(strings.Join(strings.Fields(lines[6]), " "), " "); ok && unattached(key, id) {
			exec.Command("ipcrm", "-m", id).Run()
		}
	}
	return os.RemoveAll(dir)
}

// unattached reports whether a segment of shared memory exists that no process
// uses. The key tells it from another that got the same number after a reboot.
func unattached(key, id string) bool {
	table, _ := os.ReadFile("/proc/sysvipc/shm")
	for line := range strings.Lines(string(table)) {
		// key shmid perms size cpid lpid nattch ...
		f := strings.Fields(line)
		if len(f) > 6 && f[0] == key && f[1] == id && f[6] == "0" {
			return true
		}
	}
	return false
}

// lockFolder locks a folder and notes our process in it. When the process that is
// noted is gone, its guard still has the lock while it kills what is left of the
// servers: that is waited for.
func lockFolder(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	lock, err := lockFile(path, os.O_RDWR|os.O_CREATE)
	for deadline := time.Now().Add(guardTimeout); errors.Is(err, syscall.EWOULDBLOCK); {
		text, _ := os.ReadFile(path)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if !gone(pid) || time.Now().After(deadline) {
			return nil, &InUseError{Dir: dir, PID: pid}
		}
		time.Sleep(poll)
		lock, err = lockFile(path, os.O_RDWR|os.O_CREATE)
	}
	if err != nil {
		return nil, err
	}
	if err := lock.Truncate(0); err != nil {
		lock.Close()
		return nil, err
	}
	if _, err := fmt.Fprintln(lock, os.Getpid()); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// lockFile takes the lock on a file, which the kernel drops when we die.
func lockFile(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unlock gives the lock back. Closing alone may not: a child that another
// goroutine is just starting holds the file too, until it runs its program.
func unlock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

// stillThere reports whether the path of f still leads to f.
func stillThere(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(f.Name())
	return err == nil && os.SameFile(opened, now)
}
