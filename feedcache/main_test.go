package feedcache_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) {
	if env := os.Getenv(fanoutWorker); env != "" {
		if err := work(env); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	testserver.Main(m, testserver.NeedRedis)
}

// A table is the store of record of the tests: the IDs of each owner's feed.
type table struct {
	// around runs before and after a read, under the lease if the read is to
	// fill a feed. Set it before the table is shared.
	around func(before bool)

	mu    sync.Mutex
	rows  map[int64][]int64 // ascending
	reads []int             // the n of each call
}

func (s *table) insert(owner int64, ids ...int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rows == nil {
		s.rows = make(map[int64][]int64)
	}
	rows := append(s.rows[owner], ids...)
	slices.Sort(rows)
	s.rows[owner] = slices.Compact(rows)
}

func (s *table) remove(owner, id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[owner] = slices.DeleteFunc(s.rows[owner], func(row int64) bool { return row == id })
}

// newest returns all IDs of the owner, newest first.
func (s *table) newest(owner int64) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Clone(s.rows[owner])
	slices.Reverse(ids)
	return ids
}

// Source is a feedcache.Source.
func (s *table) Source(_ context.Context, owner, before int64, n int) ([]int64, error) {
	if s.around != nil {
		s.around(true)
	}
	ids := s.newest(owner)
	ids = slices.DeleteFunc(ids, func(id int64) bool { return id >= before })
	if s.around != nil {
		s.around(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, n)
	return ids[:min(n, len(ids))], nil
}

// took returns the n of each read since the last call.
func (s *table) took() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	reads := s.reads
	s.reads = nil
	return reads
}

func open(t testing.TB, rdb redis.UniversalClient, src feedcache.Source, cfg feedcache.Config) *feedcache.Feeds {
	t.Helper()
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = 1 // most tests break a server and want it back at once
	}
	feeds, err := feedcache.New(rdb, src, cfg)
	require.NoError(t, err)
	return feeds
}

// one is the sequence of one owner.
func one(owner int64) func(func(int64) bool) { return slices.Values([]int64{owner}) }

// seq returns the IDs from first down to last.
func seq(first, last int64) []int64 {
	var ids []int64
	for id := first; id >= last; id-- {
		ids = append(ids, id)
	}
	return ids
}

// idAt returns the i-th of the adjacent IDs that one shard gives out in the
// millisecond the layout is so many years old: 41 bits of milliseconds, 13 of
// shard, 10 of sequence.
func idAt(years, i int) int64 {
	ms := int64(years) * 31_557_600_000
	return (ms<<23 | 4711<<10) + int64(i)
}

// pager is what a walk needs of a feed.
type pager interface {
	Page(ctx context.Context, owner, before int64, n int) (feedcache.Page, error)
}

// walk reads a feed page by page to its end.
func walk(ctx context.Context, f pager, owner int64, n int) ([]int64, error) {
	var ids []int64
	for before := int64(0); ; {
		page, err := f.Page(ctx, owner, before, n)
		if err != nil {
			return ids, err
		}
		ids = append(ids, page.IDs...)
		if before = page.Next; before == 0 {
			return ids, nil
		}
	}
}
