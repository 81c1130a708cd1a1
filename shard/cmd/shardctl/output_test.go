package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/shard"
)

func TestBarsMoveOnATerminal(t *testing.T) {
	t.Parallel()
	var w bytes.Buffer
	b := newBars(&w, true)
	b.tell(shard.Progress{Node: "pg_1", Done: 4, Total: 4})
	require.Equal(t, "\r\x1b[Kpg_1 "+strings.Repeat("█", 30)+" 4/4\n", w.String())
	w.Reset()
	b.tell(shard.Progress{Node: "node_2", Done: 2, Failed: 1, Total: 2})
	require.Equal(t, "\x1b[1A\r\x1b[Kpg_1   "+strings.Repeat("█", 30)+" 4/4\n\r\x1b[Knode_2 "+strings.Repeat("█", 30)+" 2/2, 1 failed\n", w.String())
}

func TestLinesComeWithEachQuarter(t *testing.T) {
	t.Parallel()
	var w bytes.Buffer
	b := newBars(&w, false)
	for n := range 100 {
		b.tell(shard.Progress{Node: "pg_1", Done: n + 1, Total: 100})
	}
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	require.Equal(t, []string{
		"pg_1: 25 of 100 shards", "pg_1: 50 of 100 shards", "pg_1: 75 of 100 shards", "pg_1: 100 of 100 shards",
	}, lines)
}

func TestNumbersAreShort(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ want, got string }{
		{"0", short(0)},
		{"0.3", short(0.26)},
		{"950", short(950.2)},
		{"1.0k", short(999.9)},
		{"1.2k", short(1234)},
		{"34M", short(34e6)},
		{"0 B", size(0)},
		{"8 kB", size(8192)},
		{"1.5 MB", size(3 << 19)},
		{"2 TB", size(2 << 40)},
		{"", bar(0, 10)},
		{"▏", bar(0.0125, 10)},
		{"█████", bar(0.5, 10)},
		{"██████████", bar(2, 10)},
	} {
		require.Equal(t, test.want, test.got)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	t.Parallel()
	f, err := os.Create(t.TempDir() + "/out")
	require.NoError(t, err)
	require.False(t, isTerminal(f))
	require.NoError(t, f.Close())
	require.False(t, isTerminal(&bytes.Buffer{}))
	tty, err := os.Open("/dev/tty")
	if err == nil { // there is none in CI
		require.True(t, isTerminal(tty))
		require.NoError(t, tty.Close())
	}
}
