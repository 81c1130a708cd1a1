//go:build linux

package idgen_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/internal/leasetest"
)

// fullDisk makes this test binary run diskFills in the directory it names.
const fullDisk = "IDGEN_TEST_FULL_DISK"

// holderWindow is that of the processes that hold shard 3.
const holderWindow = time.Second

func init() {
	if arg, ok := leasetest.Holding(); ok {
		back, dir, _ := strings.Cut(arg, " ")
		behind, err := time.ParseDuration(back)
		if err != nil {
			panic(err)
		}
		leasetest.Hold(idgen.FileLeases{Dir: dir}, 3, idgen.Config{
			Layout: leasetest.HolderLayout, Window: holderWindow, MaxBack: time.Hour,
			Now: func() time.Time { return time.Now().Add(-behind) },
		})
	}
	if dir, ok := os.LookupEnv(fullDisk); ok {
		if err := diskFills(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// TestFileLeasesAfterKills kills five holders in a row, faster than their
// windows pass, and each finds the clock another minute behind.
func TestFileLeasesAfterKills(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var last idgen.ID
	for generation := range 5 {
		h := leasetest.StartHolder(t, fmt.Sprintf("%dm %s", generation, dir))
		require.True(t, h.Await(t, 1000))
		now := time.Now()
		h.Kill()
		ids := h.IDs()
		require.Greater(t, ids[0], last, "generation %d starts above all before", generation)
		for i, id := range ids {
			require.Greater(t, id, last, "ID %d of generation %d", i, generation)
			last = id
		}
		ahead := leasetest.HolderLayout.Time(ids[0]).Sub(now)
		require.Less(t, ahead, holderWindow*3/2, "generation %d runs away from the clock", generation)
	}
}

func TestFileLeasesOfAStoppedProcessAreHeld(t *testing.T) {
	t.Parallel()
	leases := idgen.FileLeases{Dir: t.TempDir()}
	h := leasetest.StartHolder(t, "0 "+leases.Dir)
	require.True(t, h.Await(t, 100))
	h.Pause(t)
	_, err := leases.Claim(t.Context(), 3, leasetest.HolderLayout)
	require.ErrorIs(t, err, idgen.ErrHeld)
	require.ErrorContains(t, err, markFile(leases.Dir))
	other, err := leases.Claim(t.Context(), idgen.AnyShard, leasetest.HolderLayout)
	require.NoError(t, err)
	require.Zero(t, other.Shard())
	require.NoError(t, other.Release(t.Context(), 0))
	h.Resume(t)
	require.True(t, h.Await(t, 1000))
	h.Kill()
	l, err := leases.Claim(t.Context(), 3, leasetest.HolderLayout)
	require.NoError(t, err, "the lock ends with the process")
	ids := h.IDs()
	require.GreaterOrEqual(t, l.Mark(), ids[len(ids)-1])
	require.NoError(t, l.Release(t.Context(), l.Mark()))
}

func TestFileLeasesOnAFullDisk(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fullDisk+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// diskFills sees the disk fill up below a claim and a generator. The limit on
// the size of files stands for the disk: it lets writes fail, or be cut off,
// where it says. It concerns the whole process, so this is one of its own.
func diskFills(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	full := func(size uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: math.MaxUint64})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	leases := idgen.FileLeases{Dir: dir}
	cfg := idgen.Config{Window: 100 * time.Millisecond}
	for _, size := range []uint64{0, 100, 5000} {
		if err := full(size); err != nil {
			return err
		}
		if _, err := idgen.Open(ctx, leases, 3, cfg); !errors.Is(err, syscall.EFBIG) {
			return fmt.Errorf("open with room for %d bytes: %w", size, err)
		}
		if b, err := os.ReadFile(markFile(dir)); err != nil || len(b) > 0 {
			return fmt.Errorf("%d bytes are left: %w", len(b), err)
		}
	}
	if err := full(math.MaxUint64); err != nil {
		return err
	}
	g, err := idgen.Open(ctx, leases, 3, cfg)
	if err != nil {
		return err
	}
	var last idgen.ID
	for round := range 3 {
		// 5000 cuts a write of the second record off and takes one of the first.
		for _, size := range []uint64{0, 100, 5000, math.MaxUint64} {
			if err := full(size); err != nil {
				return err
			}
			refused := false
			for begin := time.Now(); !refused && time.Since(begin) < 300*time.Millisecond; {
				id, err := g.Next(ctx)
				switch {
				case errors.Is(err, syscall.EFBIG) && size != math.MaxUint64:
					refused = true
				case err != nil:
					return fmt.Errorf("round %d, room for %d bytes: %w", round, size, err)
				case id <= last:
					return fmt.Errorf("%d after %d", id, last)
				}
				last = max(last, id)
			}
			if size < slot && !refused {
				return fmt.Errorf("the generator went on for three windows with room for %d bytes", size)
			}
			if err := full(math.MaxUint64); err != nil {
				return err
			}
			mark, err := storedMark(ctx, dir)
			if err != nil || mark < last {
				return fmt.Errorf("%d was made with mark %d: %w", last, mark, err)
			}
		}
	}
	return g.Close()
}

// storedMark is the mark that a crash would leave now.
func storedMark(ctx context.Context, dir string) (idgen.ID, error) {
	b, err := os.ReadFile(markFile(dir))
	if err != nil {
		return 0, err
	}
	crashed, err := os.MkdirTemp(dir, "crashed")
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(markFile(crashed), b, 0o600); err != nil {
		return 0, err
	}
	l, err := idgen.FileLeases{Dir: crashed}.Claim(ctx, 3, idgen.Default)
	if err != nil {
		return 0, err
	}
	return l.Mark(), l.Release(ctx, l.Mark())
}

// TestFileLeasesWhenFsyncFails puts /dev/null behind the open file, which takes
// every write and refuses to sync.
func TestFileLeasesWhenFsyncFails(t *testing.T) {
	t.Parallel()
	leases := idgen.FileLeases{Dir: t.TempDir()}
	l, err := leases.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.NoError(t, l.Extend(t.Context(), 100))

	fd := descriptor(t, markFile(leases.Dir))
	saved, err := syscall.Dup(fd)
	require.NoError(t, err)
	defer syscall.Close(saved)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	require.NoError(t, syscall.Dup3(int(null.Fd()), fd, syscall.O_CLOEXEC))
	require.ErrorIs(t, l.Extend(t.Context(), 200), syscall.EINVAL)
	require.ErrorIs(t, l.Extend(t.Context(), 200), syscall.EINVAL, "the same mark is written again")
	require.ErrorIs(t, l.Extend(t.Context(), 300), syscall.EINVAL)
	require.NoError(t, l.Extend(t.Context(), 100), "is on the disk")

	require.NoError(t, syscall.Dup3(saved, fd, syscall.O_CLOEXEC))
	content, err := os.ReadFile(markFile(leases.Dir))
	require.NoError(t, err)
	mark, err := markOf(t, content)
	require.NoError(t, err)
	require.EqualValues(t, 100, mark)
	require.NoError(t, l.Extend(t.Context(), 300), "the disk works again")
	content, err = os.ReadFile(markFile(leases.Dir))
	require.NoError(t, err)
	mark, err = markOf(t, content)
	require.NoError(t, err)
	require.EqualValues(t, 300, mark)
	require.NoError(t, l.Release(t.Context(), 300))
}

// descriptor returns the number of an open file.
func descriptor(t *testing.T, path string) int {
	t.Helper()
	open, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, link := range open {
		if to, err := os.Readlink(link); err == nil && to == path {
			var fd int
			_, err := fmt.Sscan(strings.TrimPrefix(link, "/proc/self/fd/"), &fd)
			require.NoError(t, err)
			return fd
		}
	}
	require.FailNow(t, "not open", path)
	return 0
}

// TestFileLeasesReportAClaimThatIsNotStored puts devices in the place of the
// file: one is full, the other cannot sync.
func TestFileLeasesReportAClaimThatIsNotStored(t *testing.T) {
	t.Parallel()
	for device, want := range map[string]error{"/dev/full": syscall.ENOSPC, "/dev/null": syscall.EINVAL} {
		leases := idgen.FileLeases{Dir: t.TempDir()}
		require.NoError(t, os.Symlink(device, markFile(leases.Dir)))
		_, err := leases.Claim(t.Context(), 3, idgen.Default)
		require.ErrorIs(t, err, want, device)
	}
}
