package blob_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
)

func TestDir(t *testing.T) {
	t.Parallel()
	testStore(t, func(t *testing.T) blob.Store { return openDir(t, t.TempDir()) })
}

func TestDirKeepsBlobsWhereTheirKeysSay(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d := openDir(t, root)
	require.NoError(t, d.Put(t.Context(), "7f/3a/1234_612.jpg", []byte("photo")))
	require.Equal(t, []string{"7f/3a/1234_612.jpg"}, files(t, root))
	data, err := os.ReadFile(filepath.Join(root, "7f/3a/1234_612.jpg"))
	require.NoError(t, err)
	require.Equal(t, "photo", string(data))

	// Another one in the same folder sees it, as another process would.
	got, err := openDir(t, root).Get(t.Context(), "7f/3a/1234_612.jpg")
	require.NoError(t, err)
	require.Equal(t, "photo", string(got))
}

func TestDirNeedsAFolder(t *testing.T) {
	t.Parallel()
	_, err := blob.OpenDir(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err = blob.OpenDir(file)
	require.Error(t, err)
}

func TestDirClose(t *testing.T) {
	t.Parallel()
	d := openDir(t, t.TempDir())
	require.NoError(t, d.Put(t.Context(), "k", nil))
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	require.ErrorIs(t, d.Put(t.Context(), "k", nil), os.ErrClosed)
	_, err := d.Get(t.Context(), "k")
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorIs(t, d.Delete(t.Context(), "k"), os.ErrClosed)
}

func TestDirDoesNotRemoveFolders(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d := openDir(t, root)
	require.NoError(t, d.Put(t.Context(), "a/b/k", nil))
	require.NoError(t, d.Delete(t.Context(), "a/b/k", "a/b", "a"))
	require.DirExists(t, filepath.Join(root, "a/b"), "a Put may be about to use it")
}

func TestDirLeavesNothingOfAPutThatCannotBe(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d := openDir(t, root)
	require.NoError(t, d.Put(t.Context(), "a/b", []byte("blob")))
	require.Error(t, d.Put(t.Context(), "a", []byte("a folder is there")))
	require.Error(t, d.Put(t.Context(), "a/b/c", []byte("a file is where the folder would be")))
	require.Equal(t, []string{"a/b"}, files(t, root))
}

// Symbolic links are the way out that rules for keys do not close.
func TestDirDoesNotFollowLinksOut(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	root := t.TempDir()
	d := openDir(t, root)
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "out")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "secret"), filepath.Join(root, "link")))

	for _, key := range []string{"out/secret", "link"} {
		_, err := d.Get(t.Context(), key)
		require.Error(t, err, key)
	}
	require.Error(t, d.Put(t.Context(), "out/new", []byte("x")))
	require.Error(t, d.Delete(t.Context(), "out/secret"))
	require.NoError(t, d.Put(t.Context(), "link", []byte("replaces the link itself")))
	require.Equal(t, []string{"secret"}, files(t, outside))
	data, err := os.ReadFile(filepath.Join(outside, "secret"))
	require.NoError(t, err)
	require.Equal(t, "secret", string(data))
}

// A disk is full for this process when files may not grow beyond a limit: the kernel writes the first part and
// then refuses. The limit is for a whole process, so it is one of its own.
func TestDirOnAFullDisk(t *testing.T) {
	t.Parallel()
	if root := os.Getenv("BLOB_FULL_DISK"); root != "" {
		signal.Ignore(syscall.SIGXFSZ)
		const limit = 64 << 10
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}))
		d := openDir(t, root)
		require.NoError(t, d.Put(t.Context(), "p/old", []byte("old")))
		require.ErrorIs(t, d.Put(t.Context(), "p/old", noise(limit+1)), syscall.EFBIG)
		require.ErrorIs(t, d.Put(t.Context(), "q/new", noise(1<<20)), syscall.EFBIG)
		require.NoError(t, d.Put(t.Context(), "p/fits", noise(limit)))

		got, err := d.Get(t.Context(), "p/old")
		require.NoError(t, err)
		require.Equal(t, "old", string(got))
		_, err = d.Get(t.Context(), "q/new")
		require.ErrorIs(t, err, blob.ErrNotFound)
		return
	}
	root := t.TempDir()
	out, err := child(t, "BLOB_FULL_DISK="+root).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, []string{"p/fits", "p/old"}, files(t, root), "the process of its own ran, and left nothing else")
	require.NoDirExists(t, filepath.Join(root, "q"))
}

// A process that is killed leaves whole blobs, and what it was writing is no blob.
func TestDirAfterACrash(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	if root := os.Getenv("BLOB_CRASH"); root != "" {
		d := openDir(t, root)
		for i := 0; ; i++ {
			require.NoError(t, d.Put(t.Context(), "p/k", bytes.Repeat([]byte{'a' + byte(i%26)}, size)))
		}
	}
	root := t.TempDir()
	d := openDir(t, root)
	cmd := child(t, "BLOB_CRASH="+root)
	require.NoError(t, cmd.Start())
	killed := false
	t.Cleanup(func() {
		if !killed {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	// Kill it in the middle of a Put that is not the first.
	for begin := time.Now(); !slices.Contains(files(t, root), "p/k") || len(files(t, root)) != 2; {
		require.Less(t, time.Since(begin), time.Minute)
	}
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	killed = true

	got, err := d.Get(t.Context(), "p/k")
	require.NoError(t, err)
	require.Len(t, got, size)
	require.Equal(t, size, bytes.Count(got, got[:1]))

	for _, name := range files(t, root) {
		if name != "p/k" {
			_, err := d.Get(t.Context(), name)
			require.ErrorIs(t, err, blob.ErrKey, "what is left of %s must not be a blob", name)
		}
	}
	require.NoError(t, d.Put(t.Context(), "p/k", []byte("life goes on")))
}

// A Put with any key at all is refused or ends below the root.
func FuzzDirKeys(f *testing.F) {
	for _, key := range badKeys {
		f.Add(key)
	}
	f.Add("7f/3a/1234_612.jpg")
	f.Add("a/b")
	f.Fuzz(func(t *testing.T, key string) {
		parent := t.TempDir()
		root := filepath.Join(parent, "root")
		require.NoError(t, os.Mkdir(root, 0o755))
		d := openDir(t, root)
		var want []string
		if err := d.Put(t.Context(), key, []byte("data")); err != nil {
			require.ErrorIs(t, err, blob.ErrKey)
		} else {
			require.True(t, fs.ValidPath(key))
			want = []string{"root/" + key}
			got, err := d.Get(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, "data", string(got))
		}
		require.Equal(t, want, files(t, parent))
	})
}

func BenchmarkDir(b *testing.B) {
	d, err := blob.OpenDir(b.TempDir())
	require.NoError(b, err)
	defer d.Close()
	data := noise(100_000)
	b.Run("Put", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if err := d.Put(b.Context(), "7f/3a/1234_612.jpg", data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Get", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		b.ReportAllocs()
		require.NoError(b, d.Put(b.Context(), "7f/3a/1234_612.jpg", data))
		for b.Loop() {
			if _, err := d.Get(b.Context(), "7f/3a/1234_612.jpg"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func openDir(t *testing.T, name string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(name)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// child returns this test in a process of its own.
func child(t *testing.T, env string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), env)
	return cmd
}

// files returns the files below a folder, sorted, temporary ones too.
func files(t *testing.T, root string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err = filepath.Rel(root, name)
		if entry.Type().IsRegular() {
			names = append(names, name)
		}
		return err
	})
	require.NoError(t, err)
	slices.Sort(names)
	return names
}
