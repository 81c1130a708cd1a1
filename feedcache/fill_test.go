package feedcache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// More cold feeds are read than the Source can fill within a lease, as after a
// failover: each that is read is stored, or they would stay cold for ever.
func TestFillsOfABusySourceAreStored(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	feeds := open(t, testserver.Redis(t), func(context.Context, int64, int64, int) ([]int64, error) {
		time.Sleep(20 * time.Millisecond)
		return []int64{1}, nil
	}, feedcache.Config{SourceLimit: 2, LeaseTTL: 200 * time.Millisecond})
	const readers = 100 // a second's work
	errs := make([]error, readers)
	var reading sync.WaitGroup
	for i := range errs {
		reading.Go(func() { _, errs[i] = feeds.Page(ctx, int64(i+1), 0, 5) })
	}
	reading.Wait()
	require.NoError(t, errors.Join(errs...))
	require.EqualValues(t, readers, feeds.Stats().Rebuilds)
	require.EqualValues(t, readers, feeds.Stats().SourceReads)
}

// However long the Source takes, a process asks it once for a feed, and each
// reader sees what was pushed before it came.
func TestAProcessFillsAFeedOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var calls atomic.Int64
	asked, answer := make(chan struct{}), make(chan struct{})
	feeds := open(t, testserver.Redis(t), func(context.Context, int64, int64, int) ([]int64, error) {
		if calls.Add(1) == 1 {
			close(asked)
		}
		<-answer
		return []int64{1}, nil
	}, feedcache.Config{})
	var reading sync.WaitGroup
	first, err := feedcache.Page{}, error(nil)
	reading.Go(func() { first, err = feeds.Page(ctx, 1, 0, 5) })
	<-asked
	d, pushErr := feeds.Push(ctx, one(1), 2)
	pages, errs := make([]feedcache.Page, 200), make([]error, 200)
	for i := range pages {
		reading.Go(func() { pages[i], errs[i] = feeds.Page(ctx, 1, 0, 5) })
	}
	for begin := time.Now(); feeds.Stats().Waits < int64(len(pages)); time.Sleep(time.Millisecond) {
		require.Less(t, time.Since(begin), 10*time.Second, "readers do not wait")
	}
	time.Sleep(200 * time.Millisecond) // longer than they wait for other processes
	close(answer)
	reading.Wait()
	require.NoError(t, pushErr)
	require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	require.NoError(t, errors.Join(append(errs, err)...))
	require.Equal(t, []int64{1}, first.IDs, "what the Source had when it was asked")
	for _, page := range pages {
		require.Equal(t, []int64{2, 1}, page.IDs)
	}
	require.EqualValues(t, 1, calls.Load())
}

// Of a Source that fails, a reader who has waited for another one has a try of
// its own, and none waits for all of them one by one.
func TestReadersDoNotQueueForASourceThatFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	errDown := errors.New("database is down")
	feeds := open(t, testserver.Redis(t), func(context.Context, int64, int64, int) ([]int64, error) {
		time.Sleep(100 * time.Millisecond)
		return nil, errDown
	}, feedcache.Config{})
	begin := time.Now()
	errs := make([]error, 50)
	var reading sync.WaitGroup
	for i := range errs {
		reading.Go(func() { _, errs[i] = feeds.Page(ctx, 1, 0, 5) })
	}
	reading.Wait()
	for _, err := range errs {
		require.ErrorIs(t, err, errDown)
	}
	require.Less(t, time.Since(begin), 4*time.Second, "one by one they would take five")
}

// twice is a hook that repeats each first lease, as the client does when the
// answer is lost.
type twice struct{ redis.Hook }

func (twice) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (twice) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (twice) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		for _, cmd := range cmds {
			if cmd.Name() == "evalsha" && len(cmd.Args()) == 8 && cmd.Err() == nil { // a lease has four arguments
				return next(ctx, cmds)
			}
		}
		return err
	}
}

func TestALeaseWhoseAnswerWasLostIsOurs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var src table
	feeds := open(t, hooked(t, rdb, twice{}), src.Source, feedcache.Config{})
	for owner := int64(1); owner <= 2; owner++ { // the first one also loads the scripts
		src.insert(owner, 1)
		page, err := feeds.Page(ctx, owner, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{1}, page.IDs)
	}
	require.EqualValues(t, 2, feeds.Stats().Rebuilds)
	require.Zero(t, feeds.Stats().Waits)
}

// A client that has come to a replica, by a wrong address or as its server was
// demoted, does not take what it finds for whole.
func TestReplicaIsNotBelieved(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary, rdb := private(t)
	replica, err := testserver.Host(t).Redis(ctx, "replica", localserver.RedisConfig{ReplicaOf: primary})
	require.NoError(t, err)
	behind := redis.NewClient(&redis.Options{Addr: replica.Addr()})
	t.Cleanup(func() { require.NoError(t, behind.Close()) })
	var src table
	src.insert(1, 1)
	feeds := open(t, rdb, src.Source, feedcache.Config{})
	_, err = feeds.Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.EqualValues(t, 1, rdb.Wait(ctx, 1, 10*time.Second).Val())
	require.EqualValues(t, 1, behind.Exists(ctx, "feed:1").Val())
	require.NoError(t, behind.ReplicaOf(ctx, "127.0.0.1", "1").Err()) // nobody is there, so it lags
	src.insert(1, 2)
	d, err := feeds.Push(ctx, one(1), 2)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Warm: 1}, d)
	require.EqualValues(t, 2, behind.LLen(ctx, "feed:1").Val(), "it has no push")
	page, err := open(t, behind, src.Source, feedcache.Config{}).Page(ctx, 1, 0, 5)
	require.NoError(t, err)
	require.Equal(t, []int64{2, 1}, page.IDs)
}
