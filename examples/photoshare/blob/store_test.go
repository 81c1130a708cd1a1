package blob_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// badKeys are keys that no blob may have.
var badKeys = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", ".tmp/a", ".hidden", "a/.b", "...",
	"a b", "a\x00", "a\nb", "a\\b", "a:b", "a*", "a?b", "%2e%2e/a", "ä", "\xFF", "~", "a/\u2215b", strings.Repeat("a", 256),
}

// testStore checks what every Store promises. Open returns an empty one that is closed at the end of the test.
func testStore(t *testing.T, open func(t *testing.T) blob.Store) {
	t.Run("GetsWhatWasPut", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		for key, data := range map[string][]byte{
			"a":                              []byte("short"),
			"empty":                          {},
			"7f/3a/1234_612.jpg":             []byte("in folders"),
			"7f/3a/1234_306.jpg":             []byte("beside it"),
			"-x/_y/z..jpg":                   {0, 0xFF, '\r', '\n', 0},
			"large":                          noise(3 << 20),
			strings.Repeat("k", 255):         []byte("long name"),
			strings.Repeat("f/", 127) + "k":  []byte("deep"),
			"ABCXYZabcxyz0189_.-/ABCxyz09_-": []byte("every kind of character"),
		} {
			require.NoError(t, s.Put(t.Context(), key, data))
			got, err := s.Get(t.Context(), key)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, got), "key %q", key)
		}
	})

	t.Run("PutReplaces", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		for _, data := range []string{"first and long", "second", ""} {
			require.NoError(t, s.Put(t.Context(), "p/k", []byte(data)))
			got, err := s.Get(t.Context(), "p/k")
			require.NoError(t, err)
			require.Equal(t, data, string(got))
		}
	})

	t.Run("DataIsNotShared", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		data := []byte("mine")
		require.NoError(t, s.Put(t.Context(), "k", data))
		copy(data, "xxxx")
		first, err := s.Get(t.Context(), "k")
		require.NoError(t, err)
		copy(first, "yyyy")
		second, err := s.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "mine", string(second))
	})

	t.Run("AbsentKeysAreNotFound", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		require.NoError(t, s.Put(t.Context(), "a/b/c", []byte("blob")))
		for _, key := range []string{"x", "a", "a/b", "a/b/d", "a/b/c/d", "a/b/c/d/e", "b/c", "A/B/C2"} {
			got, err := s.Get(t.Context(), key)
			require.ErrorIs(t, err, blob.ErrNotFound, "key %q", key)
			require.Nil(t, got)
			require.NoError(t, s.Delete(t.Context(), key), "key %q", key)
		}
		got, err := s.Get(t.Context(), "a/b/c")
		require.NoError(t, err)
		require.Equal(t, "blob", string(got))
	})

	t.Run("DeleteRemoves", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		for _, key := range []string{"p/1", "p/2", "q/3", "keep"} {
			require.NoError(t, s.Put(t.Context(), key, []byte(key)))
		}
		require.NoError(t, s.Delete(t.Context()))
		require.NoError(t, s.Delete(t.Context(), "p/1", "absent", "q/3", "p/2", "p/2"))
		for _, key := range []string{"p/1", "p/2", "q/3"} {
			_, err := s.Get(t.Context(), key)
			require.ErrorIs(t, err, blob.ErrNotFound, "key %q", key)
		}
		got, err := s.Get(t.Context(), "keep")
		require.NoError(t, err)
		require.Equal(t, "keep", string(got))

		require.NoError(t, s.Put(t.Context(), "p/1", []byte("again")))
		got, err = s.Get(t.Context(), "p/1")
		require.NoError(t, err)
		require.Equal(t, "again", string(got))
	})

	t.Run("BadKeysAreRefused", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		require.NoError(t, s.Put(t.Context(), "good", nil))
		for _, key := range badKeys {
			require.ErrorIs(t, s.Put(t.Context(), key, []byte("x")), blob.ErrKey, "key %q", key)
			_, err := s.Get(t.Context(), key)
			require.ErrorIs(t, err, blob.ErrKey, "key %q", key)
			require.ErrorIs(t, s.Delete(t.Context(), "good", key), blob.ErrKey, "key %q", key)
		}
		_, err := s.Get(t.Context(), "good")
		require.NoError(t, err, "a bad key must not delete the others")
	})

	t.Run("EndedContextStopsEverything", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		require.NoError(t, s.Put(t.Context(), "k", []byte("old")))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, s.Put(ended, "k", []byte("new")), context.Canceled)
		_, err := s.Get(ended, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, s.Delete(ended, "k"), context.Canceled)
		got, err := s.Get(t.Context(), "k")
		require.NoError(t, err, "the store stays usable")
		require.Equal(t, "old", string(got))
	})

	t.Run("ErrorsNameTheKeyAndNotTheData", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		_, err := s.Get(t.Context(), "p/k")
		require.ErrorContains(t, err, `blob: get "p/k": `)
		err = s.Put(t.Context(), "p k", []byte("secret"))
		require.ErrorContains(t, err, `blob: put "p k": `)
		require.NotContains(t, err.Error(), "secret")
		require.ErrorContains(t, s.Delete(t.Context(), "p k"), `blob: delete "p k": `)
	})

	// Each blob is one letter, repeated: a mixture or a short one would be half a Put.
	t.Run("ReadersSeeWholeBlobs", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		const size, writers, rounds = 200_000, 3, 15
		letter := func(i int) []byte { return bytes.Repeat([]byte{'a' + byte(i)}, size) }
		require.NoError(t, s.Put(t.Context(), "p/k", letter(0)))

		var wg sync.WaitGroup
		errs := make(chan error, 2*writers)
		done := make(chan struct{})
		for i := range writers {
			wg.Go(func() {
				for range rounds {
					if err := s.Put(t.Context(), "p/k", letter(i)); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		var readers sync.WaitGroup
		for range writers {
			readers.Go(func() {
				for {
					got, err := s.Get(t.Context(), "p/k")
					if err == nil && (len(got) != size || bytes.Count(got, got[:1]) != size) {
						err = fmt.Errorf("half a blob of %d bytes", len(got))
					}
					if err != nil {
						errs <- err
						return
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		wg.Wait()
		close(done)
		readers.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
	})

	t.Run("ManyKeysAtATime", func(t *testing.T) {
		t.Parallel()
		s := open(t)
		const writers = 8
		errs := make([]error, writers)
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				for j := range 10 {
					// All of them need the same folders, none of which is there.
					key := fmt.Sprintf("%d/x/%d", j, i)
					if errs[i] = s.Put(t.Context(), key, []byte(key)); errs[i] != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		for i, err := range errs {
			require.NoError(t, err)
			for j := range 10 {
				key := fmt.Sprintf("%d/x/%d", j, i)
				got, err := s.Get(t.Context(), key)
				require.NoError(t, err)
				require.Equal(t, key, string(got))
			}
		}
	})
}

func noise(n int) []byte {
	data := make([]byte, n)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	return data
}
