package idgen_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/idgen/internal/leasetest"
)

// slot is the length of a record in a mark file.
const slot = 4096

func TestFileLeases(t *testing.T) {
	t.Parallel()
	leasetest.Run(t, func(t *testing.T) leasetest.Store {
		return leasetest.Store{Leases: idgen.FileLeases{Dir: t.TempDir()}}
	})
}

func ExampleFileLeases() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "leases") // a program has a folder that stays
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)

	g, err := idgen.Open(ctx, idgen.FileLeases{Dir: dir}, 42, idgen.Config{})
	if err != nil {
		panic(err)
	}
	defer g.Close()
	id, err := g.Next(ctx)
	if err != nil {
		panic(err)
	}
	_, err = os.Stat(filepath.Join(dir, "shard-0042.mark"))
	fmt.Println(idgen.Default.Shard(id), err)
	// Output: 42 <nil>
}

// marked returns the content of a mark file of shard 3, whose first record has
// mark 100 and whose second has 200, after one more Extend if next is not 0.
func marked(t *testing.T, next idgen.ID) []byte {
	t.Helper()
	dir := t.TempDir()
	l, err := idgen.FileLeases{Dir: dir}.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.NoError(t, l.Extend(t.Context(), 100))
	require.NoError(t, l.Extend(t.Context(), 200))
	if next != 0 {
		require.NoError(t, l.Extend(t.Context(), next))
	}
	b, err := os.ReadFile(markFile(dir))
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context(), max(200, next)))
	require.Len(t, b, 2*slot)
	return b
}

func markFile(dir string) string { return filepath.Join(dir, "shard-0003.mark") }

// markOf claims shard 3 from a file with some content.
func markOf(t *testing.T, content []byte) (idgen.ID, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(markFile(dir), content, 0o600))
	l, err := idgen.FileLeases{Dir: dir}.Claim(t.Context(), 3, idgen.Default)
	if err != nil {
		require.ErrorContains(t, err, markFile(dir))
		after, errRead := os.ReadFile(markFile(dir))
		require.NoError(t, errRead)
		require.Equal(t, content, after, "a file that is refused stays as it is")
		return 0, err
	}
	require.NoError(t, l.Release(t.Context(), l.Mark()))
	return l.Mark(), nil
}

func TestFileLeasesAreReadable(t *testing.T) {
	t.Parallel()
	b := marked(t, 0)
	for i, mark := range []string{"100", "200"} {
		text := string(b[i*slot:][:slot])
		require.True(t, strings.HasPrefix(text, "idgen lease 1\nlayout "+idgen.Default.String()+"\nshard 3\nmark "+mark+"\ncrc32c "))
		require.True(t, strings.HasSuffix(text, " \n"))
	}
}

// TestFileLeasesSurviveATornWrite cuts the write of mark 300 over 100 off after
// every byte that differs, and some more.
func TestFileLeasesSurviveATornWrite(t *testing.T) {
	t.Parallel()
	old, next := marked(t, 0), marked(t, 300)
	require.Equal(t, old[slot:], next[slot:], "the newest record is not touched")
	for n := range 150 {
		torn := append(bytes.Clone(next[:n]), old[n:]...)
		mark, err := markOf(t, torn)
		require.NoError(t, err)
		if bytes.Equal(torn, next) {
			require.EqualValues(t, 300, mark, "cut off after %d bytes", n)
		} else {
			require.EqualValues(t, 200, mark, "cut off after %d bytes", n)
		}
	}
}

func TestFileLeasesFindDamage(t *testing.T) {
	t.Parallel()
	whole := marked(t, 0)
	first, second := whole[:slot], whole[slot:]
	zeros := make([]byte, slot)
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	digit := bytes.Index(second, []byte("mark 200")) + len("mark ")
	const bad = "neither record can be read"

	tests := []struct {
		name    string
		content []byte
		mark    idgen.ID
		fails   string
	}{
		{name: "Whole", content: whole, mark: 200},
		{name: "Swapped", content: join(second, first), mark: 200},
		{name: "NewerIsZeros", content: join(first, zeros), mark: 100},
		{name: "OlderIsZeros", content: join(zeros, second), mark: 200},
		{name: "NewerHasAnotherMark", content: join(first, flip(second, digit)), mark: 100},
		{name: "NewerHasAnotherPadding", content: join(first, flip(second, slot-2)), mark: 100},
		{name: "NewerIsMissing", content: first, mark: 100},
		{name: "NewerIsCutOff", content: join(first, second[:slot/2]), mark: 100},
		{name: "Empty", content: []byte{}, mark: 0},
		{name: "BothAreZeros", content: join(zeros, zeros), fails: bad},
		{name: "BothAreWrong", content: join(flip(first, 0), flip(second, digit)), fails: bad},
		{name: "OneByte", content: whole[:1], fails: bad},
		{name: "HalfARecord", content: whole[:slot/2], fails: bad},
		{name: "AnotherFormat", content: []byte("200\n"), fails: bad},
		{name: "MuchText", content: bytes.Repeat([]byte("a\n"), 2*slot), fails: bad},
		{name: "ALongLine", content: bytes.Repeat([]byte("a"), 2*slot), fails: bad},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			mark, err := markOf(t, tt.content)
			if tt.fails != "" {
				require.ErrorContains(t, err, tt.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.mark, mark)
		})
	}
}

func TestFileLeasesRefuseTheFileOfAnotherShard(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "shard-0004.mark"), marked(t, 0), 0o600))
	_, err := idgen.FileLeases{Dir: dir}.Claim(t.Context(), 4, idgen.Default)
	require.ErrorContains(t, err, "it is the file of shard 3")
}

func TestFileLeasesWantADirectory(t *testing.T) {
	t.Parallel()
	_, err := idgen.FileLeases{}.Claim(t.Context(), 3, idgen.Default)
	require.ErrorContains(t, err, "Dir is empty")
	missing := filepath.Join(t.TempDir(), "not-mounted")
	_, err = idgen.FileLeases{Dir: missing}.Claim(t.Context(), idgen.AnyShard, idgen.Default)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoDirExists(t, missing)
}

func TestFileLeasesStopWhenTheirFileIsRemoved(t *testing.T) {
	t.Parallel()
	leases := idgen.FileLeases{Dir: t.TempDir()}
	a, err := leases.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.NoError(t, a.Extend(t.Context(), 100))
	require.NoError(t, os.Remove(markFile(leases.Dir)))
	require.ErrorIs(t, a.Extend(t.Context(), 200), idgen.ErrLeaseLost)
	b, err := leases.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.NoError(t, b.Extend(t.Context(), 300))
	require.ErrorIs(t, a.Extend(t.Context(), 400), idgen.ErrLeaseLost)
	require.NoError(t, a.Release(t.Context(), 200))
	require.NoError(t, b.Release(t.Context(), 300))
	mark, err := leases.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.EqualValues(t, 300, mark.Mark())
	require.NoError(t, mark.Release(t.Context(), 300))
}

func TestFileLeasesKeepOthersOut(t *testing.T) {
	t.Parallel()
	leases := idgen.FileLeases{Dir: t.TempDir()}
	l, err := leases.Claim(t.Context(), 3, idgen.Default)
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context(), 0))
	info, err := os.Stat(markFile(leases.Dir))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
}
