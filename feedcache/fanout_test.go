package feedcache_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// An audience is the followers of each author, in ascending order.
type audience []int64

func (c audience) Followers(ctx context.Context, _, after int64, n int) ([]int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	begin, _ := slices.BinarySearch(c, after+1)
	return slices.Clone(c[begin:min(begin+n, len(c))]), nil
}

// some returns n followers, with gaps.
func some(n int) (c audience) {
	for i := range int64(n) {
		c = append(c, 3*i+5)
	}
	return c
}

// A memory is a Queue, whose jobs travel as JSON.
type memory struct {
	mu   sync.Mutex
	jobs []feedcache.Job
	fail error
}

var _ feedcache.Queue = (*memory)(nil)

func (m *memory) EnqueueTx(ctx context.Context, _ pgx.Tx, jobs ...feedcache.Job) error {
	return m.Enqueue(ctx, jobs...)
}

func (m *memory) Enqueue(_ context.Context, jobs ...feedcache.Job) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, job := range jobs {
		var copied feedcache.Job
		if err := json.Unmarshal(must(json.Marshal(job)), &copied); err != nil {
			return err
		}
		m.jobs = append(m.jobs, copied)
	}
	return nil
}

// warm gives each owner an empty feed.
func warm(t *testing.T, rdb *redis.Client, feeds *feedcache.Feeds, owners []int64) {
	t.Helper()
	lease := headOn(t, feeds, readyTag, 0, 0)
	pipe := rdb.Pipeline()
	for _, owner := range owners {
		key := "feed:" + strconv.FormatInt(owner, 10)
		pipe.Del(t.Context(), key)
		pipe.RPush(t.Context(), key, "", lease)
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
}

// landed returns how many ops each feed took since it was warm.
func landed(t *testing.T, rdb *redis.Client, owners []int64) map[int64]int {
	t.Helper()
	pipe := rdb.Pipeline()
	lengths := make(map[int64]*redis.IntCmd)
	for _, owner := range owners {
		lengths[owner] = pipe.LLen(t.Context(), "feed:"+strconv.FormatInt(owner, 10))
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	counts := make(map[int64]int)
	for owner, length := range lengths {
		counts[owner] = int(length.Val()) - 2
	}
	return counts
}

// each is what landed returns if all took n.
func each(owners []int64, n int) map[int64]int {
	counts := make(map[int64]int)
	for _, owner := range owners {
		counts[owner] = n
	}
	return counts
}

func newFanout(t *testing.T, feeds *feedcache.Feeds, f feedcache.Followers, cfg feedcache.FanoutConfig) *feedcache.Fanout {
	t.Helper()
	o, err := feedcache.NewFanout(feeds, f, cfg)
	require.NoError(t, err)
	return o
}

// routes is a Routes with one answer.
type routes struct {
	pull bool
	fail error
}

func (r routes) Pulled(context.Context, int64) ([]int64, error)             { return nil, r.fail }
func (r routes) Skip(context.Context, int64, int64) (bool, error)           { return r.pull, r.fail }
func (r routes) Set(context.Context, int64, feedcache.Route) (int64, error) { return 0, r.fail }

func TestNewFanoutRefusesBadConfig(t *testing.T) {
	t.Parallel()
	feeds := open(t, unmanaged(t), new(table).Source, feedcache.Config{})
	f := audience{1}.Followers
	tests := []struct {
		name  string
		feeds *feedcache.Feeds
		f     feedcache.Followers
		cfg   feedcache.FanoutConfig
		want  string
	}{
		{name: "NoFeeds", f: f, want: "the feeds are nil"},
		{name: "NoFollowers", feeds: feeds, want: "the Followers are nil"},
		{name: "PageSize", feeds: feeds, f: f, cfg: feedcache.FanoutConfig{PageSize: -1}, want: "PageSize is -1"},
		{name: "Chunk", feeds: feeds, f: f, cfg: feedcache.FanoutConfig{Chunk: -1}, want: "Chunk is -1"},
		{name: "SmallChunk", feeds: feeds, f: f, cfg: feedcache.FanoutConfig{Chunk: 9, PageSize: 10}, want: "Chunk is 9"},
		{name: "RouteAge", feeds: feeds, f: f, cfg: feedcache.FanoutConfig{RouteAge: -1}, want: "RouteAge is -1ns"},
		{name: "RoutesAlone", feeds: feeds, f: f, cfg: feedcache.FanoutConfig{Routes: routes{}}, want: "Routes without Outboxes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := feedcache.NewFanout(test.feeds, test.f, test.cfg)
			require.ErrorContains(t, err, "feedcache: ")
			require.ErrorContains(t, err, test.want)
		})
	}
	require.NotNil(t, newFanout(t, feeds, f, feedcache.FanoutConfig{}))
}

func TestFanoutRefusesBadJobs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	feeds := open(t, testserver.Redis(t), new(table).Source, feedcache.Config{})
	o := newFanout(t, feeds, audience{1}.Followers, feedcache.FanoutConfig{})
	for name, job := range map[string]feedcache.Job{
		"no author":      {IDs: []int64{1}},
		"author":         {Author: math.MaxInt64, IDs: []int64{1}},
		"no IDs":         {Author: 1},
		"ID":             {Author: 1, IDs: []int64{1, 0}},
		"negative After": {Author: 1, IDs: []int64{1}, After: -1},
		"negative Until": {Author: 1, IDs: []int64{1}, Until: -1},
		"largest Until":  {Author: 1, IDs: []int64{1}, Until: math.MaxInt64},
		"empty range":    {Author: 1, IDs: []int64{1}, After: 5, Until: 4},
	} {
		_, err := o.Run(ctx, job, nil)
		require.ErrorIs(t, err, feedcache.ErrInvalid, name)
		require.ErrorContains(t, err, "feedcache: fan-out of author ", name)
	}
	d, err := o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{1}, Until: math.MaxInt64 - 1}, nil)
	require.NoError(t, err)
	require.Equal(t, feedcache.Delivery{Cold: 1}, d)
	d, err = o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{1}, After: math.MaxInt64 - 1}, nil)
	require.NoError(t, err)
	require.Zero(t, d)
}

// The names are in the queues of running systems.
func TestJobAsJSON(t *testing.T) {
	t.Parallel()
	for text, job := range map[string]feedcache.Job{
		`{"author":7,"ids":[9,8]}`: {Author: 7, IDs: []int64{9, 8}},
		`{"author":7,"ids":[9223372036854775806],"remove":true,"after":5,"until":9223372036854775805,"at":"2026-01-02T03:04:05.000000006Z"}`: {
			Author: 7, IDs: []int64{math.MaxInt64 - 1}, Remove: true, After: 5, Until: math.MaxInt64 - 2,
			At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		},
	} {
		got, err := json.Marshal(job)
		require.NoError(t, err)
		require.Equal(t, text, string(got))
		var back feedcache.Job
		require.NoError(t, json.Unmarshal(got, &back))
		require.Equal(t, job, back)
	}
}

// Every follower is delivered to once, whatever the size of the pages, and the
// cursor is saved after each.
func TestFanoutReachesEachFollowerOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(100)
	for _, size := range []int{1, 7, 10, 50, 99, 100, 101, 5000} {
		warm(t, rdb, feeds, followers[:90])
		var progress []feedcache.Progress
		reads := 0
		count := func(ctx context.Context, author, after int64, n int) ([]int64, error) {
			reads++
			return followers.Followers(ctx, author, after, n)
		}
		o := newFanout(t, feeds, count, feedcache.FanoutConfig{
			PageSize: size, Chunk: 5000, Progress: func(p feedcache.Progress) { progress = append(progress, p) },
		})
		job := feedcache.Job{Author: 1, IDs: []int64{9}, At: time.Now().Add(-time.Hour)}
		var saved []int64
		d, err := o.Run(ctx, job, func(_ context.Context, cursor int64) error {
			saved = append(saved, cursor)
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, feedcache.Delivery{Warm: 90, Cold: 10}, d)
		require.Equal(t, each(followers[:90], 1), landed(t, rdb, followers[:90]))
		var want []int64
		for page := range slices.Chunk(followers, size) {
			want = append(want, page[len(page)-1])
		}
		require.Equal(t, want, saved)
		require.Equal(t, 100/size+1, reads, "a page that is not full is the last")
		require.Len(t, progress, len(want))
		last := progress[len(progress)-1]
		require.Positive(t, last.Took)
		last.Took = 0
		require.Equal(t, feedcache.Progress{Job: job, Cursor: followers[99], Followers: 100, Delivery: d}, last)
		s := o.Stats()
		require.EqualValues(t, 1, s.Jobs)
		require.Zero(t, s.Failed+s.Skipped)
		require.EqualValues(t, 90, s.Delay.Count(), "warm feeds")
		require.GreaterOrEqual(t, s.Delay.Quantile(0.1), time.Hour)
	}
	nobody := newFanout(t, feeds, audience(nil).Followers, feedcache.FanoutConfig{})
	d, err := nobody.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}}, nil)
	require.NoError(t, err)
	require.Zero(t, d)
}

// A job is what lies between After and Until.
func TestFanoutOfAPart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(40)
	for _, size := range []int{1, 10, 40} {
		o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{PageSize: size})
		for _, part := range [][2]int64{{0, 4}, {0, 5}, {5, 5}, {5, 8}, {7, 33}, {8, 34}, {50, 0}, {62, 122}, {122, 0}, {500, 0}} {
			warm(t, rdb, feeds, followers)
			_, err := o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}, After: part[0], Until: part[1]}, nil)
			require.NoError(t, err)
			want := each(followers, 0)
			for _, f := range followers {
				if f > part[0] && (part[1] == 0 || f <= part[1]) {
					want[f] = 1
				}
			}
			require.Equal(t, want, landed(t, rdb, followers), "pages of %d, %v", size, part)
		}
	}
}

// The job fails after each page, and goes on from its cursor.
func TestFanoutResumes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(50)
	errDown := errors.New("database is down")
	o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{PageSize: 10, Chunk: 20, Queue: new(memory)})
	for _, stored := range []bool{true, false} { // with the failure after or before the cursor is stored
		warm(t, rdb, feeds, followers)
		job, runs := feedcache.Job{Author: 1, IDs: []int64{9}, Until: 1000}, 0
		for runs = 1; ; runs++ {
			cursor := job.After
			pages := 0
			_, err := o.Run(ctx, job, func(_ context.Context, c int64) error {
				if pages++; pages == 1 {
					cursor = c
					return nil
				}
				if stored {
					cursor = c
				}
				return errDown
			})
			if job.After = cursor; err == nil {
				break
			}
			require.ErrorIs(t, err, errDown)
			require.EqualError(t, err, "feedcache: fan-out of author 1: saving the cursor: database is down")
		}
		got := landed(t, rdb, followers)
		if stored {
			require.Equal(t, 3, runs)
			require.Equal(t, each(followers, 1), got)
			continue
		}
		require.Equal(t, 5, runs)
		for _, f := range followers {
			require.Contains(t, []int{1, 2}, got[f], "again, and that is all")
		}
	}
}

// What is more than a chunk becomes jobs of their own: these and the first part
// have each follower once.
func TestFanoutHandsOnChunks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	for _, test := range []struct{ followers, page, chunk, jobs int }{
		{0, 10, 20, 0},
		{19, 10, 20, 0},
		{20, 10, 20, 0},
		{21, 10, 20, 1},
		{100, 10, 20, 4},
		{101, 10, 20, 5},
		{100, 10, 10, 9},
		{100, 7, 20, 4}, // chunks of three pages
		{100, 1, 1, 99},
		{100, 100, 100, 0},
		{5, 1, 3, 1},
	} {
		followers := some(test.followers)
		warm(t, rdb, feeds, append(followers, 1_000_000))
		var q memory
		var last feedcache.Progress
		o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{
			PageSize: test.page, Chunk: test.chunk, Queue: &q, Progress: func(p feedcache.Progress) { last = p },
		})
		job := feedcache.Job{Author: 1, IDs: []int64{9, 10}, At: time.Now().UTC()}
		var saved []int64
		d, err := o.Run(ctx, job, func(_ context.Context, cursor int64) error {
			saved = append(saved, cursor)
			return nil
		})
		require.NoError(t, err)
		require.Len(t, q.jobs, test.jobs, "%+v", test)
		require.True(t, slices.IsSorted(saved))
		require.EqualValues(t, test.followers, last.Followers+last.HandedOn)
		require.EqualValues(t, last.Followers, d.Warm)
		if test.followers > 0 {
			require.Equal(t, followers[test.followers-1], saved[len(saved)-1])
		}
		for _, chunk := range q.jobs {
			require.True(t, chunk.At.Equal(job.At))
			require.Equal(t, job.IDs, chunk.IDs)
			before := len(q.jobs)
			d, err := o.Run(ctx, chunk, nil)
			require.NoError(t, err)
			require.Len(t, q.jobs, before, "a chunk is not split again")
			require.LessOrEqual(t, d.Warm, (test.chunk+test.page-1)/test.page*test.page)
		}
		require.Equal(t, each(followers, 2), landed(t, rdb, followers), "%+v", test)
	}
}

// The job that hands on fails at each place, is run again from its cursor, and
// what it enqueued is run too, even twice: all followers have it.
func TestFanoutThatHandsOnResumes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(95)
	errDown := errors.New("database is down")
	for failAt := 1; failAt <= 7; failAt++ {
		for _, stored := range []bool{true, false} {
			warm(t, rdb, feeds, followers)
			var q memory
			o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{PageSize: 10, Chunk: 20, Queue: &q})
			job := feedcache.Job{Author: 1, IDs: []int64{9}}
			saves := 0
			_, err := o.Run(ctx, job, func(_ context.Context, c int64) error {
				if saves++; saves < failAt || stored {
					job.After = c
				}
				if saves == failAt {
					return errDown
				}
				return nil
			})
			if failAt <= 6 { // two pages of its own, and 75 followers in four chunks
				require.ErrorIs(t, err, errDown)
				_, err = o.Run(ctx, job, nil)
			}
			require.NoError(t, err)
			for i := 0; i < len(q.jobs); i++ {
				_, err = o.Run(ctx, q.jobs[i], nil)
				require.NoError(t, err)
			}
			got := landed(t, rdb, followers)
			if stored || failAt > 6 {
				require.Equal(t, each(followers, 1), got)
				continue
			}
			for _, f := range followers {
				require.Contains(t, []int{1, 2}, got[f])
			}
		}
	}
}

func TestFanoutFails(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	outboxes := open(t, rdb, new(table).Source, feedcache.Config{Prefix: "outbox"})
	away := open(t, func() *redis.Client {
		c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialerRetries: 1})
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}(), new(table).Source, feedcache.Config{Prefix: "away"})
	errDown := errors.New("database is down")
	followers := some(50)
	// after lets as many followers through.
	after := func(n int, then func([]int64) ([]int64, error)) feedcache.Followers {
		return func(ctx context.Context, author, after int64, limit int) ([]int64, error) {
			page, err := followers.Followers(ctx, author, after, limit)
			if len(page) > 0 && page[0] > followers[n] {
				return then(page)
			}
			return page, err
		}
	}
	down := func([]int64) ([]int64, error) { return nil, errDown }
	tests := []struct {
		name   string
		feeds  *feedcache.Feeds
		f      feedcache.Followers
		cfg    feedcache.FanoutConfig
		want   string
		is     error
		cursor int64 // that was saved last
	}{
		{name: "FirstPage", f: after(0, down), want: "followers after 32: database is down", is: errDown, cursor: 32},
		{name: "LaterPage", f: after(20, down), want: "followers after 92: database is down", is: errDown, cursor: 92},
		{
			name: "TooMany", want: "followers after 32: got 11, want at most 10", cursor: 32,
			f: after(0, func(page []int64) ([]int64, error) { return append(page, 1_000_000), nil }),
		},
		{
			name: "Unsorted", want: "followers after 32: got one out of order at index 3", cursor: 32,
			f: after(0, func(page []int64) ([]int64, error) { page[3] = page[2]; return page, nil }),
		},
		{
			name: "NotAfter", want: "followers after 32: got one out of order at index 0", cursor: 32,
			f: after(0, func(page []int64) ([]int64, error) { page[0] = 32; return page, nil }),
		},
		{
			name: "Top", want: "followers after 32: got one out of order at index 9", cursor: 32,
			f: after(0, func(page []int64) ([]int64, error) { page[9] = math.MaxInt64; return page, nil }),
		},
		{name: "Feeds", feeds: away, want: "feedcache: fan-out of author 1: feedcache: push away:"},
		{name: "Outbox", cfg: feedcache.FanoutConfig{Outboxes: away}, want: "push away:1: "},
		{name: "Route", cfg: feedcache.FanoutConfig{Outboxes: outboxes, Routes: routes{fail: errDown}}, want: "route: database is down", is: errDown},
		{
			name: "Queue", cfg: feedcache.FanoutConfig{Queue: &memory{fail: errDown}, Chunk: 20}, is: errDown,
			want: "handing on followers above 62 up to 122: database is down", cursor: 62,
		},
		{
			name: "PageOfAChunk", f: after(29, down), cfg: feedcache.FanoutConfig{Queue: new(memory), Chunk: 20}, is: errDown,
			want: "followers after 92: database is down", cursor: 62,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.f == nil {
				test.f = followers.Followers
			}
			if test.feeds == nil {
				test.feeds = feeds
			}
			test.cfg.PageSize = 10
			o := newFanout(t, test.feeds, test.f, test.cfg)
			var cursor int64
			_, err := o.Run(t.Context(), feedcache.Job{Author: 1, IDs: []int64{9}}, func(_ context.Context, c int64) error {
				cursor = c
				return nil
			})
			require.ErrorContains(t, err, "feedcache: fan-out of author 1: ")
			require.ErrorContains(t, err, test.want)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
			require.Equal(t, test.cursor, cursor)
			s := o.Stats()
			require.EqualValues(t, 1, s.Jobs)
			require.EqualValues(t, 1, s.Failed)
			if q, ok := test.cfg.Queue.(*memory); ok {
				require.Empty(t, q.jobs)
			}
		})
	}
}

// The context ends at each place; the run ends with it, and says so.
func TestFanoutWhoseContextEnds(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(100)
	for place := range 4 {
		ctx, cancel := context.WithCancel(t.Context())
		reads := 0
		end := func(at int) {
			if at == place {
				cancel()
			}
		}
		o := newFanout(t, feeds, func(ctx context.Context, author, after int64, n int) ([]int64, error) {
			if reads++; reads == 5 {
				end(0)
				if place == 1 { // a slow database, and a reader that waits for it
					cancel()
					<-ctx.Done()
				}
			}
			return followers.Followers(ctx, author, after, n)
		}, feedcache.FanoutConfig{PageSize: 10, Chunk: 20, Queue: new(memory), Progress: func(p feedcache.Progress) {
			if p.Followers == 20 {
				end(2)
			}
		}})
		saves := 0
		_, err := o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}}, func(context.Context, int64) error {
			if saves++; saves == 3 {
				end(3)
			}
			return nil
		})
		require.ErrorIs(t, err, context.Canceled, "place %d", place)
		require.Positive(t, saves)
		require.EqualValues(t, 1, o.Stats().Failed)
		cancel()
		_, err = o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}}, nil)
		require.ErrorIs(t, err, context.Canceled)
	}
}

// A panic in the caller's code reaches the caller, and leaves no goroutine.
func TestFanoutWhoseSavePanics(t *testing.T) {
	t.Parallel()
	feeds := open(t, testserver.Redis(t), new(table).Source, feedcache.Config{})
	o := newFanout(t, feeds, some(100).Followers, feedcache.FanoutConfig{PageSize: 10})
	require.PanicsWithValue(t, "no more", func() {
		_, _ = o.Run(t.Context(), feedcache.Job{Author: 1, IDs: []int64{9}}, func(context.Context, int64) error { panic("no more") })
	})
}

// A removal goes to the outbox and to all feeds, also of an author who is
// pulled; a push of such an author stays in the outbox.
func TestFanoutAndOutboxes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	rdb := testserver.Redis(t)
	var posts table
	posts.insert(1, 5)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	outboxes := open(t, rdb, posts.Source, feedcache.Config{Prefix: "outbox"})
	followers := some(10)
	for _, pull := range []bool{false, true} {
		warm(t, rdb, feeds, followers)
		require.NoError(t, outboxes.Drop(ctx, 1))
		_, err := outboxes.Page(ctx, 1, 0, 1)
		require.NoError(t, err)
		o := newFanout(t, feeds, followers.Followers, feedcache.FanoutConfig{Outboxes: outboxes, Routes: routes{pull: pull}})
		d, err := o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9, 8}}, nil)
		require.NoError(t, err)
		page, err := outboxes.Page(ctx, 1, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{9, 8, 5}, page.IDs)
		pushed := 2
		if pull {
			pushed = 0
			require.Zero(t, d)
			require.EqualValues(t, 1, o.Stats().Skipped)
		}
		require.Equal(t, each(followers, pushed), landed(t, rdb, followers))

		_, err = o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}, Remove: true}, nil)
		require.NoError(t, err)
		require.Equal(t, each(followers, pushed+1), landed(t, rdb, followers))
		page, err = outboxes.Page(ctx, 1, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{8, 5}, page.IDs)

		// A part of a job asks neither: whoever made it has.
		_, err = o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{7}, After: 1}, nil)
		require.NoError(t, err)
		require.Equal(t, each(followers, pushed+2), landed(t, rdb, followers))
		page, err = outboxes.Page(ctx, 1, 0, 5)
		require.NoError(t, err)
		require.Equal(t, []int64{8, 5}, page.IDs)
	}
}

// fanoutWorker names the environment of a worker in a process of its own: the
// address and database of Redis, and the cursor to start from.
const fanoutWorker = "FEEDCACHE_FANOUT_WORKER"

// work is that worker. It prints its cursor after each page, and waits for a
// line, so that it is not done before it can be killed.
func work(env string) error {
	var addr string
	var database int
	var cursor int64
	if _, err := fmt.Sscan(env, &addr, &database, &cursor); err != nil {
		return err
	}
	rdb := redis.NewClient(&redis.Options{Addr: addr, DB: database})
	defer rdb.Close()
	feeds, err := feedcache.New(rdb, new(table).Source, feedcache.Config{})
	if err != nil {
		return err
	}
	o, err := feedcache.NewFanout(feeds, some(3000).Followers, feedcache.FanoutConfig{PageSize: 30})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stored := bufio.NewReader(os.Stdin)
	_, err = o.Run(ctx, feedcache.Job{Author: 1, IDs: []int64{9}, After: cursor}, func(_ context.Context, c int64) error {
		if _, err := fmt.Println("cursor", c); err != nil {
			return err
		}
		_, err := stored.ReadString('\n')
		return err
	})
	return err
}

// Three workers are killed in the middle of a fan-out, a moment after they went
// on with a page; others go on from the cursor that was stored. In the end each
// feed shows the ID once.
func TestFanoutAfterSIGKILL(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	feeds := open(t, rdb, new(table).Source, feedcache.Config{})
	followers := some(3000)
	warm(t, rdb, feeds, followers)
	var cursor int64
	for kills := range 4 {
		worker := exec.CommandContext(t.Context(), os.Args[0])
		worker.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", fanoutWorker, rdb.Options().Addr, rdb.Options().DB, cursor))
		worker.Stderr = os.Stderr
		in, err := worker.StdinPipe()
		require.NoError(t, err)
		out, err := worker.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, worker.Start())
		pages, killed := 0, false
		for lines := bufio.NewScanner(out); lines.Scan(); {
			text, ok := strings.CutPrefix(lines.Text(), "cursor ")
			require.True(t, ok, lines.Text())
			cursor, err = strconv.ParseInt(text, 10, 64)
			require.NoError(t, err)
			if _, err := fmt.Fprintln(in, "stored"); !killed {
				require.NoError(t, err)
			}
			if pages++; pages == 10 && kills < 3 {
				time.Sleep(time.Duration(kills) * 200 * time.Microsecond) // somewhere in the next page
				require.NoError(t, worker.Process.Kill())
				killed = true
			}
		}
		err = worker.Wait()
		if kills < 3 {
			require.ErrorContains(t, err, "signal: killed")
			require.Contains(t, []int{10, 11}, pages)
		} else {
			require.NoError(t, err)
		}
	}
	require.Equal(t, followers[2999], cursor)
	for owner, n := range landed(t, rdb, followers) {
		require.Contains(t, []int{1, 2}, n, "follower %d", owner)
	}
	for owners := range slices.Chunk(followers, 10) {
		page, err := feeds.Page(t.Context(), owners[0], 0, 5)
		require.NoError(t, err)
		require.Equal(t, feedcache.Page{IDs: []int64{9}}, page)
	}
}
