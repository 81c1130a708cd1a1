package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

var (
	_ Store     = (*Dir)(nil)
	_ io.Closer = (*Dir)(nil)
)

// temporary is the folder of files that are being written. It is inside of the root, because a rename is atomic
// only within one file system.
const temporary = ".tmp"

// Dir is a [Store] in a folder. It is safe for concurrent use, also by several processes at a time.
type Dir struct {
	root *os.Root
}

// OpenDir returns a Dir in a folder that exists: creating it would hide that a disk is not mounted.
func OpenDir(name string) (*Dir, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("blob: open: %w", err)
	}
	if err := root.Mkdir(temporary, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("blob: open: %w", errors.Join(err, root.Close()))
	}
	return &Dir{root: root}, nil
}

// Close closes the folder. Calls that are under way end as they would have; later ones fail.
func (d *Dir) Close() error { return d.root.Close() }

// Put implements [Store].
func (d *Dir) Put(ctx context.Context, key string, data []byte) error {
	if err := d.put(ctx, key, data); err != nil {
		return fmt.Errorf("blob: put %q: %w", key, err)
	}
	return nil
}

func (d *Dir) put(ctx context.Context, key string, data []byte) (err error) {
	if err := errors.Join(checkKey(key), ctx.Err()); err != nil {
		return err
	}
	temp := path.Join(temporary, rand.Text())
	defer func() {
		if err != nil {
			_ = d.root.Remove(temp) // the first error says more
		}
	}()
	if err := d.write(temp, data); err != nil {
		return err
	}
	if err := d.root.MkdirAll(path.Dir(key), 0o755); err != nil {
		return err
	}
	if err := d.root.Rename(temp, key); err != nil {
		return err
	}
	// All of them, even if they were there: another Put may have made them, and have got no further.
	for folder := path.Dir(key); ; folder = path.Dir(folder) {
		if err := d.sync(folder); err != nil {
			return err
		}
		if folder == "." {
			return nil
		}
	}
}

// write makes a new file and waits until it is on the disk.
func (d *Dir) write(name string, data []byte) error {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// sync waits until the names in a folder are on the disk.
func (d *Dir) sync(folder string) error {
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Get implements [Store].
func (d *Dir) Get(ctx context.Context, key string) ([]byte, error) {
	err := errors.Join(checkKey(key), ctx.Err())
	if err == nil {
		var data []byte
		if data, err = d.root.ReadFile(key); err == nil {
			return data, nil
		}
		if noBlob(err) {
			err = ErrNotFound
		}
	}
	return nil, fmt.Errorf("blob: get %q: %w", key, err)
}

// Delete implements [Store].
func (d *Dir) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return fmt.Errorf("blob: delete %q: %w", key, err)
		}
	}
	var errs []error
	folders := make(map[string]bool)
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("blob: delete %q: %w", key, err))
			break
		}
		removed, err := d.remove(key)
		if err != nil {
			errs = append(errs, fmt.Errorf("blob: delete %q: %w", key, err))
		}
		if removed {
			folders[path.Dir(key)] = true
		}
	}
	for folder := range folders {
		if err := d.sync(folder); err != nil {
			errs = append(errs, fmt.Errorf("blob: delete: %w", err))
		}
	}
	return errors.Join(errs...)
}

// remove removes a file, but not a folder: it is no blob, and a Put may be about to use it.
func (d *Dir) remove(key string) (bool, error) {
	info, err := d.root.Lstat(key)
	if err == nil && info.IsDir() {
		return false, nil
	}
	if err == nil {
		err = d.root.Remove(key)
	}
	if err != nil && noBlob(err) {
		return false, nil
	}
	return err == nil, err
}

// noBlob reports whether an error says that there is nothing, a folder, or a file where a folder would be.
func noBlob(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ENOTDIR)
}
