package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedRedis, testserver.NeedMemcached) }

// folder returns one that servers may enter who run as another user.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proof300m-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

// needServers skips the test at home if a server is missing. Where CI is set,
// TestMain has failed already.
func needServers(t *testing.T) {
	t.Helper()
	if err := localserver.Available(localserver.KindRedis, localserver.KindMemcached); err != nil {
		t.Skip(err)
	}
}

// A short run: every layout answers rightly, and the report has what was found.
func TestRunWritesWhatItMeasured(t *testing.T) {
	t.Parallel()
	needServers(t)
	out, scratch := t.TempDir(), folder(t)
	file := filepath.Join(out, "figures.json")
	var stdout, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"-n=40000", "-peers=20000", "-time=50ms", "-out", out, "-dir", scratch, "-json", file,
	}, &stdout, &stderr))
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)

	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(text, &r))
	written, err := os.ReadFile(filepath.Join(out, "hashkv-300m.md"))
	require.NoError(t, err)
	require.Len(t, r.Results, 9)
	perKey := map[string]float64{}
	for _, d := range r.Results {
		what := fmt.Sprintf("%s with %d", d.Name, d.Keys)
		perKey[what] = d.BytesPerKey
		require.Zero(t, d.Wrong, what)
		require.Zero(t, d.Missing, what)
		require.GreaterOrEqual(t, d.Checked, d.Get.Count+d.Get8.Count+d.GetMulti.Count, what)
		require.Positive(t, d.ProcessMicros, what)
		for _, kind := range []reads{d.Get, d.Get8, d.GetMulti} {
			require.Positive(t, kind.Rate, what)
		}
		require.LessOrEqual(t, d.Get.P50, d.Get.P99, what)
		require.Contains(t, string(written), fmt.Sprintf("| %s | %s |", d.Name, proof.Count(d.Keys)))
		require.Contains(t, string(written), fmt.Sprintf("| %.2f | %s |", d.BytesPerKey, mb(d.Used)))
		if d.Name == "memcached" {
			continue
		}
		// Nothing keeps 24 random bits in less, in memory or in a file.
		require.Greater(t, d.BytesPerKey, leastDense(), what)
		require.Greater(t, d.RDB, 3*d.Keys, what)
		require.Positive(t, d.RestartSeconds, what)
		require.Positive(t, d.CommandMicros, what)
		wanted := "512"
		if d.Name == "id/1000, raised limit" {
			wanted = "1000"
		}
		require.Equal(t, wanted, d.Limit, what)
		if d.Stats != nil {
			require.InEpsilon(t, d.Keys, d.Stats.Entries, 0.05, what)
		}
	}
	require.Greater(t, perKey["string keys with 20000"], 2*perKey["hashkv sparse with 20000"])
	require.Greater(t, perKey["id/1000, stock limit with 20000"], 2*perKey["id/1000, raised limit with 20000"])
	require.Len(t, r.Bars, 2)

	picture, err := os.Open(filepath.Join(out, "hashkv-300m.png"))
	require.NoError(t, err)
	defer picture.Close()
	_, err = png.Decode(picture)
	require.NoError(t, err)
	drawing, err := os.ReadFile(filepath.Join(out, "hashkv-300m.svg"))
	require.NoError(t, err)
	for _, c := range r.columns() {
		require.Contains(t, string(drawing), fmt.Sprintf("%.2f", c.bytes), c.label)
	}
}

// Its servers end with it, and no folder is left.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	needServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	scratch := folder(t)
	begin := time.Now()
	err := run(ctx, []string{"-n=20000", "-time=1h", "-out", t.TempDir(), "-dir", scratch}, &bytes.Buffer{}, &bytes.Buffer{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begin), 30*time.Second)
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestRunRefusesWhatTheMachineHasNoRoomFor(t *testing.T) {
	t.Parallel()
	cfg := config{n: 300_000_000, peers: 3_000_000, out: t.TempDir(), dir: t.TempDir(), time: time.Second}
	wanted := need(layouts(cfg))
	require.LessOrEqual(t, wanted.memory, int64(12e9), "what a full run may take")
	for _, test := range []struct {
		name   string
		have   resources
		refuse string
	}{
		{"Memory", resources{wanted.memory - 1, wanted.disk, cfg.dir}, "of memory"},
		{"Disk", resources{wanted.memory, wanted.disk - 1, cfg.dir}, "of disk"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := prove(t.Context(), cfg, test.have, &bytes.Buffer{}, proof.NewProgress(&bytes.Buffer{}))
			require.ErrorContains(t, err, test.refuse)
			left, err := os.ReadDir(cfg.dir)
			require.NoError(t, err)
			require.Empty(t, left, "refused before anything is started")
		})
	}
	require.NoError(t, wanted.check(wanted))
	have, err := available(cfg.dir)
	require.NoError(t, err)
	require.Positive(t, have.memory)
	require.Positive(t, have.disk)
}

// An answer that is wrong, a missing one, or a bucket that is no listpack, makes
// the run fail.
func TestTroubleIsAnError(t *testing.T) {
	t.Parallel()
	var sum tally
	sum.check(7, owner(7))
	sum.check(7, owner(7)+1)
	sum.check(7, absent)
	require.Equal(t, tally{checked: 3, wrong: 1, missing: 1}, sum)
	for _, test := range []struct {
		name    string
		result  result
		trouble bool
	}{
		{"Right", result{Checked: 9, Stats: &stats{Encodings: map[string]int{"listpack": 8, "raw": 1}}}, false},
		{"Wrong", result{Checked: 9, Wrong: 1}, true},
		{"Missing", result{Checked: 9, Missing: 1}, true},
		{"HashTable", result{Checked: 9, Stats: &stats{Encodings: map[string]int{"listpack": 8, "hashtable": 1}}}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := report{Results: []result{test.result}}
			require.Equal(t, test.trouble, r.trouble() != nil)
		})
	}
}

// The figures that are known for 300 million.
func TestPairsAreThoseOfTheReference(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 3.0, leastDense(), 0)
	require.InDelta(t, 6.91, leastSparse(300_000_000), 0.005)
	year := idgen.Default.Epoch.AddDate(1, 0, 0)
	require.WithinDuration(t, year, idgen.Default.Time(idgen.ID(photoID(300_000_000))), 24*time.Hour)
	for i := range int64(100_000) {
		require.Less(t, photoID(i)>>23, photoID(i+1)>>23)
		require.Less(t, owner(i), int64(1<<24))
	}
}

func TestRunRefusesBadArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-n=10"}, {"-n=20000000000"}, {"-peers=1"}, {"-time=0s"}, {"fast"}, {"-json"}, {"-dir=/nowhere"}} {
		require.Error(t, run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}), "%q", args)
	}
}
