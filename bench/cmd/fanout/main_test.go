package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

func TestMain(m *testing.M) {
	if orders := os.Getenv(ordersVariable); orders != "" {
		if err := work(context.Background(), orders); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedRedis)
}

// folder returns one that servers may enter who run as another user.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fanout-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

// needServers skips the test at home if a server is missing. Where CI is set,
// TestMain has failed already.
func needServers(t *testing.T) {
	t.Helper()
	if err := localserver.Available(localserver.KindPostgres, localserver.KindRedis); err != nil {
		t.Skip(err)
	}
}

// A short run: every feed is right, the second post has been through a kill,
// and the report has what was found.
func TestRunWritesWhatItMeasured(t *testing.T) {
	t.Parallel()
	needServers(t)
	out, scratch := t.TempDir(), folder(t)
	file := filepath.Join(out, "figures.json")
	var stdout, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"-n=20000", "-page=200", "-entries=5", "-out", out, "-dir", scratch, "-json", file,
	}, &stdout, &stderr))
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)

	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(text, &r))
	written, err := os.ReadFile(filepath.Join(out, "fanout-1m.md"))
	require.NoError(t, err)
	require.Len(t, r.Runs, 2)
	require.Greater(t, r.FeedSize, int64(8*5))
	for _, d := range r.Runs {
		require.EqualValues(t, 20_000, d.Checked, d.Name)
		require.Zero(t, d.Wrong, d.Name)
		require.Equal(t, d.Pushes-20_000, d.Repeated, d.Name)
		require.Positive(t, d.WorkerMicros, d.Name)
		require.Positive(t, d.RedisMicros, d.Name)
		require.NotEmpty(t, d.Samples, d.Name)
		require.LessOrEqual(t, d.FifthRSS, d.MostRSS, d.Name)
		require.Contains(t, string(written), fmt.Sprintf("| %s | **%.2f s** |", d.Name, d.Seconds))
	}
	require.Nil(t, r.Runs[0].Kill)
	require.Zero(t, r.Runs[0].Repeated)

	k := r.Runs[1].Kill
	require.NotNil(t, k)
	require.GreaterOrEqual(t, k.Pushes, int64(10_000))
	require.Less(t, k.Pushes, int64(20_000))
	require.Positive(t, k.Saved)
	require.LessOrEqual(t, k.Saved, k.Pushes)
	require.Zero(t, k.Saved%200, "the cursor is at the end of a page")
	require.LessOrEqual(t, r.Runs[1].Repeated, int64(200), "no more than the page that was under way")
	resumed := slices.ContainsFunc(r.Runs[1].Samples, func(at sample) bool { return at.Worker == 2 })
	require.True(t, resumed)

	picture, err := os.Open(filepath.Join(out, "fanout-1m.png"))
	require.NoError(t, err)
	defer picture.Close()
	_, err = png.Decode(picture)
	require.NoError(t, err)
	drawing, err := os.ReadFile(filepath.Join(out, "fanout-1m.svg"))
	require.NoError(t, err)
	require.Contains(t, string(drawing), "SIGKILL")
}

// small is a scene with few followers.
func small(t *testing.T) *scene {
	t.Helper()
	host := testserver.Host(t)
	s, err := setUp(t.Context(), config{n: 2000, entries: 3, page: 200}, host, proof.NewProgress(&bytes.Buffer{}))
	require.NoError(t, err)
	t.Cleanup(s.close)
	return s
}

// A feed that lacks a post or has one too many is counted, and one that was
// pushed to twice is right.
func TestCheckSeesWrongFeeds(t *testing.T) {
	t.Parallel()
	s := small(t)
	p := proof.NewProgress(&bytes.Buffer{})
	wrong := func() int64 {
		t.Helper()
		var r delivery
		require.NoError(t, s.check(t.Context(), &r, p))
		require.EqualValues(t, 2000, r.Checked)
		return r.Wrong
	}
	require.Zero(t, wrong())
	push := func(id int64, owners ...int64) {
		t.Helper()
		d, err := s.feeds.Push(t.Context(), slices.Values(owners), id)
		require.NoError(t, err)
		require.Equal(t, len(owners), d.Warm)
	}
	push(post(2), follower(0), follower(1999))
	require.Zero(t, wrong(), "repeated")
	push(post(3), follower(5), follower(6), follower(7))
	require.EqualValues(t, 3, wrong(), "one too many")
	s.posts = append(s.posts, post(3))
	require.EqualValues(t, 1997, wrong(), "one is missing")
}

// A feed that is cold has not got the post, which no count of pushes tells.
func TestColdFeedIsAnError(t *testing.T) {
	t.Parallel()
	s := small(t)
	require.NoError(t, s.feeds.Drop(t.Context(), follower(77)))
	_, err := s.deliver(t.Context(), "one worker", false, proof.NewProgress(&bytes.Buffer{}))
	require.ErrorContains(t, err, "1 feeds were cold")
}

func TestFailureOfAWorkerIsAnError(t *testing.T) {
	t.Parallel()
	s := small(t)
	_, err := s.conn.Exec(t.Context(), `drop table follower`)
	require.NoError(t, err)
	for _, killed := range []bool{false, true} {
		_, err = s.deliver(t.Context(), "worker", killed, proof.NewProgress(&bytes.Buffer{}))
		require.ErrorContains(t, err, `relation "follower" does not exist`)
	}
}

// Its servers and workers end with it, and no folder is left.
func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	needServers(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	scratch := folder(t)
	begin := time.Now()
	err := run(ctx, []string{"-n=2000000", "-out", t.TempDir(), "-dir", scratch}, &bytes.Buffer{}, &bytes.Buffer{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(begin), 30*time.Second)
	left, err := os.ReadDir(scratch)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestTroubleIsAnError(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		done    delivery
		trouble bool
	}{
		{"Right", delivery{Checked: 9, Repeated: 3}, false},
		{"Wrong", delivery{Checked: 9, Wrong: 1}, true},
		{"Unchecked", delivery{Checked: 8}, true},
		{"TooFewPushes", delivery{Checked: 9, Repeated: -1}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := report{N: 9, Runs: []delivery{test.done}}
			require.Equal(t, test.trouble, r.trouble() != nil)
		})
	}
}

func TestFollowersAndPostsAscend(t *testing.T) {
	t.Parallel()
	for i := range 10_000 {
		require.Less(t, follower(int64(i)), follower(int64(i)+1))
		require.Less(t, post(i), post(i+1))
	}
}

func TestRunRefusesBadArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-n=10"},
		{"-n=200000000"},
		{"-n=100000000", "-entries=700"},
		{"-entries=0"},
		{"-page=0"},
		{"-n=1000", "-page=500"},
		{"fast"},
		{"-json"},
		{"-dir=/nowhere"},
	} {
		require.Error(t, run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}), "%q", args)
	}
}
