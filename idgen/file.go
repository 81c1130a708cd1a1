package idgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// slotSize is the length of one of a file's two records: a page of memory and
// a sector of the disk, so that a write that is cut off spoils one record only.
const slotSize = 4096

// FileLeases keeps leases in the files of a directory, for the processes of one
// machine. A number belongs to the process that has its file locked (flock). The
// kernel ends the lock with the process, also when it is killed, so there is no
// timeout: a holder that is alive, even stopped, keeps its number, and another
// claim of it returns [ErrHeld].
//
// The file of shard 42 is shard-0042.mark, which holds its mark as text, twice:
//
//	byte 0         4096        8192
//	     ┌───────────┬───────────┐
//	     │ record    │ record    │   the higher mark counts
//	     └───────────┴───────────┘
//
// Extend overwrites the lower record in place and waits until the disk has it
// (fsync). When it is cut off by a crash or fails, the higher one is untouched.
// A file in which neither can be read is an error, never a mark of 0.
//
// The directory must be on a local disk and outlive the processes; network file
// systems differ in what their locks promise. Never remove the file of a number
// that is held: until its holder extends again, up to a third of [Config.Window]
// later, it and the next one make the same IDs. When the file of another number is
// removed, its IDs begin at the clock again. A disk that
// loses the newer record after it said that it was written sets the mark back by
// one Extend.
//
// Claim costs two fsyncs, three for a number never used, Extend one and Release
// two. They wait for the disk, which no context can interrupt. On systems without
// flock, such as Windows, Claim returns [errors.ErrUnsupported].
//
// It is safe for concurrent use.
type FileLeases struct {
	// Dir is the directory. It must exist: one that is made when a volume is
	// not mounted would hide the marks.
	Dir string
}

var _ Leases = FileLeases{}

// Claim locks the file of a shard number, or of the lowest that nobody holds and
// whose file is not damaged.
func (f FileLeases) Claim(ctx context.Context, shard int, layout Layout) (Lease, error) {
	if f.Dir == "" {
		return nil, errors.New("idgen: FileLeases.Dir is empty: want a directory")
	}
	var damaged error
	first, last := shard, shard
	if shard == AnyShard {
		first, last = 0, layout.MaxShard()
	}
	for n := first; n <= last; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l, err := f.claim(n, layout)
		if shard == AnyShard && errors.Is(err, ErrHeld) {
			continue
		}
		if shard == AnyShard && errors.Is(err, errDamaged) {
			damaged = errors.Join(damaged, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	if damaged != nil {
		return nil, damaged
	}
	return nil, ErrHeld
}

// errDamaged is in the error of a file without a record.
var errDamaged = errors.New("neither record can be read")

func (f FileLeases) claim(shard int, layout Layout) (*fileLease, error) {
	path := filepath.Join(f.Dir, fmt.Sprintf("shard-%04d.mark", shard))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(file); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	l := &fileLease{file: file, path: path, record: record{layout: layout.String(), shard: shard}}
	if err := l.load(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// A fileLease is a file that this process has locked.
type fileLease struct {
	record // as it was at the claim
	path   string
	file   *os.File
	info   fs.FileInfo
	marks  [2]ID // of the records, as the disk has them; -1 is not readable
}

// load reads the marks, after the disk has all that is read: who was killed may
// have made the file, or written a record, without waiting for it.
func (l *fileLease) load() error {
	var err error
	if l.info, err = l.file.Stat(); err != nil {
		return err
	}
	if l.info.Size() == 0 {
		// A number never used, or a crash just after the file was made.
		if err := l.create(); err != nil {
			return err
		}
	}
	if err := errors.Join(l.file.Sync(), syncDir(filepath.Dir(l.path))); err != nil {
		return err
	}
	for i := range l.marks {
		if l.marks[i], err = l.read(i); err != nil {
			return err
		}
	}
	if l.mark = max(l.marks[0], l.marks[1]); l.mark < 0 {
		return fmt.Errorf("%s: %w: put back a copy, or remove the file "+
			"if the clock is surely past every ID of shard %d", l.path, errDamaged, l.shard)
	}
	return nil
}

// create writes both records, so that the disk has room for them from then on.
func (l *fileLease) create() error {
	_, err := l.file.WriteAt(bytes.Repeat(l.encode(), 2), 0)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		return errors.Join(err, l.file.Truncate(0))
	}
	return nil
}

// read returns the mark of a record, or -1 when it was cut off.
func (l *fileLease) read(slot int) (ID, error) {
	b := make([]byte, slotSize)
	if _, err := l.file.ReadAt(b, int64(slot)*slotSize); err != nil && err != io.EOF {
		return 0, err
	}
	r, ok := decode(b)
	switch {
	case !ok:
		return -1, nil
	case r.layout != l.layout:
		return 0, fmt.Errorf("%s: shard %d has IDs of layout %s: want %s", l.path, l.shard, r.layout, l.layout)
	case r.shard != l.shard:
		return 0, fmt.Errorf("%s: it is the file of shard %d", l.path, r.shard)
	}
	return r.mark, nil
}

// write overwrites a record. After an error the caller must not trust what is
// read from the file, as the kernel may keep a page that it could not write and
// call it clean; to write the same record again is right, because it makes the
// page dirty, and the next Sync speaks of it.
func (l *fileLease) write(slot int, mark ID) error {
	if l.marks[slot] == mark {
		return nil
	}
	r := record{layout: l.layout, shard: l.shard, mark: mark}
	if _, err := l.file.WriteAt(r.encode(), int64(slot)*slotSize); err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		return err
	}
	l.marks[slot] = mark
	return nil
}

// lower is the slot that is overwritten next: one that is not readable goes
// first, and one whose write failed goes again.
func (l *fileLease) lower() int {
	if l.marks[1] < l.marks[0] {
		return 1
	}
	return 0
}

// check returns ErrLeaseLost if the file is no longer the one under its name.
func (l *fileLease) check() error {
	info, err := os.Stat(l.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, l.info) {
		return fmt.Errorf("%w: %s was removed", ErrLeaseLost, l.path)
	}
	return err
}

func (l *fileLease) Shard() int { return l.shard }

func (l *fileLease) Mark() ID { return l.mark }

func (l *fileLease) Extend(ctx context.Context, mark ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	if mark <= max(l.marks[0], l.marks[1]) {
		return nil
	}
	return l.write(l.lower(), mark)
}

// Release unlocks the file in any case. The higher record goes last: until then
// it counts.
func (l *fileLease) Release(ctx context.Context, mark ID) error {
	err := ctx.Err()
	if err == nil {
		err = l.check()
	}
	if err == nil {
		lower := l.lower()
		if err = l.write(lower, mark); err == nil {
			err = l.write(1-lower, mark)
		}
	}
	if errors.Is(err, ErrLeaseLost) {
		err = nil
	}
	return errors.Join(err, l.close())
}

// close unlocks first: a child that is being started has the file open too,
// for a moment, and would keep the lock.
func (l *fileLease) close() error {
	return errors.Join(unlockFile(l.file), l.file.Close())
}

// syncDir waits until the disk has the names of a directory.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A record is what a file says about its shard.
type record struct {
	layout string
	shard  int
	mark   ID
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r record) encode() []byte {
	b := fmt.Appendf(nil, "idgen lease 1\nlayout %s\nshard %d\nmark %d\n", r.layout, r.shard, r.mark)
	b = fmt.Appendf(b, "crc32c %08x\n", crc32.Checksum(b, castagnoli))
	b = append(b, bytes.Repeat([]byte{' '}, slotSize-len(b)-1)...)
	return append(b, '\n')
}

// decode accepts nothing but what encode returns.
func decode(b []byte) (record, bool) {
	lines := strings.Split(string(b), "\n")
	if len(lines) < 4 {
		return record{}, false
	}
	shard, errShard := strconv.Atoi(strings.TrimPrefix(lines[2], "shard "))
	mark, errMark := strconv.ParseInt(strings.TrimPrefix(lines[3], "mark "), 10, 64)
	r := record{layout: strings.TrimPrefix(lines[1], "layout "), shard: shard, mark: ID(mark)}
	if errShard != nil || errMark != nil || len(r.layout) > slotSize/2 {
		return record{}, false
	}
	return r, bytes.Equal(b, r.encode())
}
