package idgen_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/idgen"
)

// anyLayout draws a valid layout.
func anyLayout(t *rapid.T) idgen.Layout {
	sequence := rapid.IntRange(6, 22).Draw(t, "sequence bits")
	shard := rapid.IntRange(0, 64-32-sequence).Draw(t, "shard bits")
	return idgen.Layout{
		TimeBits: 64 - shard - sequence, ShardBits: shard, SequenceBits: sequence,
		Epoch: time.UnixMilli(rapid.Int64Range(0, 2_000_000_000_000).Draw(t, "epoch")),
	}
}

func TestComposeIsUndoneByItsParts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := anyLayout(t)
		require.NoError(t, l.Validate())
		ms := rapid.Int64Range(0, 1<<(l.TimeBits-1)-1).Draw(t, "ms")
		shard := rapid.IntRange(0, l.MaxShard()).Draw(t, "shard")
		sequence := rapid.IntRange(0, 1<<l.SequenceBits-1).Draw(t, "sequence")
		at := time.UnixMilli(l.Epoch.UnixMilli() + ms).UTC()
		id, err := l.Compose(at.Add(rapid.SampledFrom([]time.Duration{0, 1, time.Millisecond - 1}).Draw(t, "more")), shard, sequence)
		require.NoError(t, err)
		require.GreaterOrEqual(t, id, idgen.ID(0))
		require.Equal(t, at, l.Time(id))
		require.Equal(t, shard, l.Shard(id))
		require.Equal(t, sequence, l.Sequence(id))
		require.LessOrEqual(t, l.First(at), id)
		require.GreaterOrEqual(t, l.Last(at), id)
		require.Equal(t, at, l.Time(l.First(at)))
		require.Equal(t, at, l.Time(l.Last(at)))
		if later := at.Add(time.Millisecond); later.Before(l.RunsOut()) {
			require.Equal(t, l.Last(at)+1, l.First(later))
		}
	})
}

func TestComposeRefusesWhatHasNoRoom(t *testing.T) {
	t.Parallel()
	l := idgen.Default
	for _, test := range []struct {
		name            string
		at              time.Time
		shard, sequence int
	}{
		{"BeforeTheEpoch", l.Epoch.Add(-1), 0, 0},
		{"AfterTheEnd", l.RunsOut(), 0, 0},
		{"NegativeShard", l.Epoch, -1, 0},
		{"ShardAboveItsBits", l.Epoch, 8192, 0},
		{"NegativeSequence", l.Epoch, 0, -1},
		{"SequenceAboveItsBits", l.Epoch, 0, 1024},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			id, err := l.Compose(test.at, test.shard, test.sequence)
			require.Error(t, err)
			require.Zero(t, id)
		})
	}
	_, err := l.Compose(l.RunsOut(), 0, 0)
	require.ErrorIs(t, err, idgen.ErrRunOut)
}

// TestLayoutsAreThePublishedOnes pins what stored IDs depend on.
func TestLayoutsAreThePublishedOnes(t *testing.T) {
	t.Parallel()
	require.Equal(t, "41/13/10 since 2026-01-01T00:00:00Z", idgen.Default.String())
	require.Equal(t, "41/13/10 since 2011-08-24T21:07:01.721Z", idgen.Instagram.String())
	require.Equal(t, 8191, idgen.Default.MaxShard())
	// The example of Instagram's post: user 31341 of 2000 shards, 1387263000 ms
	// after the epoch, the 5001st of its table.
	id, err := idgen.Instagram.Compose(idgen.Instagram.Epoch.Add(1387263000*time.Millisecond), 31341%2000, 5001%1024)
	require.NoError(t, err)
	require.Equal(t, idgen.ID(1387263000<<23|1341<<10|905), id)
	require.Equal(t, time.Date(2060, 11, 3, 19, 53, 47, 776e6, time.UTC), idgen.Default.RunsOut())
	require.Equal(t, "2046-06-27T17:00:49.497Z", idgen.Instagram.RunsOut().Format(time.RFC3339Nano))
}

func TestFirstAndLastBeyondTheLayout(t *testing.T) {
	t.Parallel()
	l := idgen.Default
	require.Equal(t, idgen.ID(0), l.First(l.Epoch.Add(-1)))
	require.Equal(t, idgen.ID(0), l.Last(l.Epoch.Add(-1)))
	require.Equal(t, idgen.ID(0), l.First(l.Epoch))
	require.Equal(t, idgen.ID(1<<23-1), l.Last(l.Epoch))
	require.Equal(t, idgen.MaxID, l.Last(l.RunsOut().Add(-1)))
	require.Equal(t, idgen.ID(math.MaxInt64), l.First(l.RunsOut()))
	require.Equal(t, idgen.MaxID, l.Last(l.RunsOut()))
}
