package feedcache_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A journal is an observer.
type journal struct {
	mu     sync.Mutex
	events []feedcache.Event
}

func (j *journal) note(e feedcache.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

// took returns the events since the last call, without what varies.
func (j *journal) took() []feedcache.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	events := j.events
	j.events = nil
	for i := range events {
		events[i].Took = 0
	}
	return events
}

func TestEachEventAndCounter(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	src := table{}
	src.insert(1, seq(200, 1)...)
	var log journal
	feeds := open(t, rdb, src.Source, feedcache.Config{Cap: 64, Observe: log.note, FailoverCheck: time.Hour})
	page := func(owner, before int64, n int) func() error {
		return func() error { _, err := feeds.Page(ctx, owner, before, n); return err }
	}
	push := func(ids []int64, owners ...int64) func() error {
		return func() error { _, err := feeds.Push(ctx, slices.Values(owners), ids...); return err }
	}
	type E = feedcache.Event
	type S = feedcache.Stats
	steps := []struct {
		name   string
		do     func() error
		events []E
		stats  S // what is added
	}{
		{
			name: "ColdPage", do: page(1, 0, 5),
			events: []E{{Kind: feedcache.SourceRead, Owner: 1, N: 64}, {Kind: feedcache.Rebuild, Owner: 1, N: 64}},
			stats:  S{SourceReads: 1, Rebuilds: 1},
		},
		{name: "WarmPage", do: page(1, 0, 5)},
		{
			name: "BelowTheFloor", do: page(1, 100, 5),
			events: []E{{Kind: feedcache.SourceRead, Owner: 1, N: 6}},
			stats:  S{SourceReads: 1},
		},
		{
			name: "Push", do: push([]int64{300}, 1, 2, 3),
			events: []E{{Kind: feedcache.Delivered, N: 1}, {Kind: feedcache.SkippedCold, N: 2}},
			stats:  S{Delivered: 1, SkippedCold: 2},
		},
		{
			name:   "Remove",
			do:     func() error { _, err := feeds.Remove(ctx, one(1), 300, 299); return err },
			events: []E{{Kind: feedcache.Delivered, N: 1}},
			stats:  S{Delivered: 1},
		},
		{name: "PushToColdFeeds", do: push([]int64{300}, 2), events: []E{{Kind: feedcache.SkippedCold, N: 1}}, stats: S{SkippedCold: 1}},
		{
			name: "Compaction", do: push(seq(308, 301), 1),
			events: []E{{Kind: feedcache.Delivered, N: 1}, {Kind: feedcache.Compaction, N: 1}},
			stats:  S{Delivered: 1, Compactions: 1},
		},
		{
			name: "Edit", do: func() error { return feeds.Edit(ctx, 1, without(func(id int64) bool { return id < 307 })) },
			events: []E{{Kind: feedcache.Edited, Owner: 1, N: 2}},
			stats:  S{Edits: 1},
		},
		{name: "EditOfAColdFeed", do: func() error { return feeds.Edit(ctx, 2, nil) }},
		{name: "Drop", do: func() error { return feeds.Drop(ctx, 1, 2) }},
		{
			name: "EmptyFeed", do: page(4, 0, 5),
			events: []E{{Kind: feedcache.SourceRead, Owner: 4}, {Kind: feedcache.Rebuild, Owner: 4}},
			stats:  S{SourceReads: 1, Rebuilds: 1},
		},
		{
			name: "Lease",
			do: func() error {
				put(ctx, rdb, "feed:5", time.Minute, "", headOn(t, feeds, buildingTag, 0, 0))
				return page(5, 0, 5)()
			},
			events: append(slices.Repeat([]E{{Kind: feedcache.Wait, Owner: 5}}, 5), E{Kind: feedcache.SourceRead, Owner: 5}),
			stats:  S{Waits: 5, SourceReads: 1},
		},
		{
			name: "EditUnderALease", do: func() error { return feeds.Edit(ctx, 5, nil) },
			events: []E{{Kind: feedcache.Edited, Owner: 5}},
			stats:  S{Edits: 1},
		},
		{
			name: "ShortPage",
			do: func() error {
				src.insert(6, seq(10_500, 1)...)
				_, err := feeds.PageKeep(ctx, 6, 10_400, 1000, func(_ context.Context, ids []int64) ([]int64, error) {
					return slices.DeleteFunc(ids, func(id int64) bool { return id%100 != 0 }), nil
				})
				log.took() // among others, as many reads of the Source as it takes
				return err
			},
			events: []E{},
			stats:  S{ShortPages: 1, Rebuilds: 1},
		},
	}
	var total S
	for _, step := range steps {
		require.NoError(t, step.do(), step.name)
		events := log.took()
		require.True(t, slices.Equal(step.events, events), "%s: %v", step.name, events)
		was := total
		total = feeds.Stats()
		if step.name == "ShortPage" {
			step.stats.SourceReads = total.SourceReads - was.SourceReads
			require.Positive(t, step.stats.SourceReads)
		}
		require.Equal(t, step.stats, S{
			Delivered: total.Delivered - was.Delivered, SkippedCold: total.SkippedCold - was.SkippedCold,
			Rebuilds: total.Rebuilds - was.Rebuilds, Compactions: total.Compactions - was.Compactions,
			Edits: total.Edits - was.Edits, Waits: total.Waits - was.Waits,
			SourceReads: total.SourceReads - was.SourceReads, SourceErrors: total.SourceErrors - was.SourceErrors,
			ShortPages: total.ShortPages - was.ShortPages, RedisFailures: total.RedisFailures - was.RedisFailures,
		}, step.name)
	}
}

// A mark is neither a push nor a removal.
func TestSeenIsNoDelivery(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var src table
	feeds := open(t, testserver.Redis(t), src.Source, feedcache.Config{})
	_, err := feeds.Page(ctx, 1, 0, 1)
	require.NoError(t, err)
	require.NoError(t, feeds.Seen(ctx, 1, 5))
	require.NoError(t, feeds.Seen(ctx, 2, 5))
	require.Equal(t, feedcache.Stats{Rebuilds: 1, SourceReads: 1}, feeds.Stats())
}

func TestEventsOfFailures(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	var src table
	src.insert(1, 5, 6)
	errDown := errors.New("database is down")
	var fail error
	var log journal
	feeds := open(t, rdb, func(ctx context.Context, owner, before int64, n int) ([]int64, error) {
		time.Sleep(time.Millisecond) // for Took
		ids, _ := src.Source(ctx, owner, before, n)
		return ids, fail
	}, feedcache.Config{Observe: log.note})
	page, err := feeds.Page(ctx, 1, 0, 2)
	require.NoError(t, err)
	require.Equal(t, feedcache.Page{IDs: []int64{6, 5}}, page)
	log.mu.Lock()
	require.Len(t, log.events, 2)
	require.Equal(t, feedcache.RedisFailure, log.events[0].Kind)
	require.EqualValues(t, 1, log.events[0].Owner)
	require.ErrorContains(t, log.events[0].Err, "refused")
	require.Equal(t, feedcache.SourceRead, log.events[1].Kind)
	require.GreaterOrEqual(t, log.events[1].Took, time.Millisecond)
	log.mu.Unlock()
	log.took()

	fail = errDown
	_, err = feeds.Page(ctx, 1, 0, 2)
	require.ErrorIs(t, err, errDown)
	events := log.took()
	require.Equal(t, feedcache.Event{Kind: feedcache.SourceRead, Owner: 1, N: 2, Err: errDown}, events[1])
	_, err = feeds.Push(ctx, one(1), 7)
	require.Error(t, err)
	require.Empty(t, log.took(), "a push returns its failure")
	require.Equal(t, feedcache.Stats{SourceReads: 2, SourceErrors: 1, RedisFailures: 2}, feeds.Stats())
}

func TestEventKindsHaveNames(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for k := feedcache.Delivered; k <= feedcache.RedisFailure; k++ {
		require.NotEmpty(t, k.String())
		names[k.String()] = true
	}
	require.Len(t, names, int(feedcache.RedisFailure)+1)
	require.Equal(t, "skipped_cold", feedcache.SkippedCold.String())
	require.Equal(t, "EventKind(9)", (feedcache.RedisFailure + 1).String())
	require.Equal(t, "EventKind(-1)", feedcache.EventKind(-1).String())
}
