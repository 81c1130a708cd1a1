package feedcache_test

import (
	"context"
	"errors"
	"iter"
	"math"
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// The control: with the usual sorted set, which is filled without a lease, the
// model finds what is wrong with it, and nothing where it does no harm.
func TestModelFindsWhatIsWrongWithASortedSet(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		years int
		calm  bool
		want  error
	}{
		{"NothingBelow53Bits", 0, true, nil},
		{"ScoresAreRounded", 3, true, errLost},
		{"FillsOverwritePushes", 0, false, errLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx, rdb := t.Context(), testserver.Redis(t)
			err := search(30, tc.want, func(draw func(int) int, seed int64) error {
				m := newModel(draw, seed, idAt(tc.years, 0))
				m.feeds = []feed{zset{rdb, m.source}}
				return m.run(ctx, 80, tc.calm)
			})
			require.ErrorIs(t, err, tc.want)
		})
	}
}

// A zset is a feed whose score is the ID, as most are. It never trims, so it
// has no floor.
type zset struct {
	rdb    *redis.Client
	source feedcache.Source
}

func (z zset) keys(owner int64) (feed, removed string) {
	feed = "zset:" + strconv.FormatInt(owner, 10)
	return feed, feed + ":removed"
}

// bottom is in each feed and below every ID, so that an empty feed exists.
const bottom = "bottom"

// each does something for the keys of owners that have a feed.
func (z zset) each(ctx context.Context, owners iter.Seq[int64], do func(key, removed string) error) (d feedcache.Delivery, err error) {
	for owner := range owners {
		key, removed := z.keys(owner)
		if z.rdb.Exists(ctx, key).Val() == 0 {
			d.Cold++
			continue
		}
		d.Warm++
		err = errors.Join(err, do(key, removed))
	}
	return d, err
}

func (z zset) Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error) {
	return z.each(ctx, owners, func(key, removed string) error {
		if z.rdb.SIsMember(ctx, removed, ids[0]).Val() {
			return nil
		}
		return z.rdb.ZAdd(ctx, key, redis.Z{Score: float64(ids[0]), Member: ids[0]}).Err()
	})
}

func (z zset) Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error) {
	return z.each(ctx, owners, func(key, removed string) error {
		return errors.Join(z.rdb.ZRem(ctx, key, ids[0]).Err(), z.rdb.SAdd(ctx, removed, ids[0]).Err())
	})
}

func (z zset) Drop(ctx context.Context, owners ...int64) error {
	_, err := z.each(ctx, slices.Values(owners), func(key, removed string) error { return z.rdb.Del(ctx, key, removed).Err() })
	return err
}

func (z zset) Page(ctx context.Context, owner, before int64, n int) (page feedcache.Page, err error) {
	key, removed := z.keys(owner)
	if z.rdb.Exists(ctx, key).Val() == 0 {
		ids, err := z.source(ctx, owner, math.MaxInt64, posts)
		if err != nil {
			return page, err
		}
		members := []redis.Z{{Score: -1, Member: bottom}}
		for _, id := range ids {
			members = append(members, redis.Z{Score: float64(id), Member: id})
		}
		pipe := z.rdb.TxPipeline()
		pipe.Del(ctx, key, removed)
		pipe.ZAdd(ctx, key, members...)
		if _, err := pipe.Exec(ctx); err != nil {
			return page, err
		}
	}
	from := "+inf"
	if before > 0 {
		from = "(" + strconv.FormatInt(before, 10)
	}
	members, err := z.rdb.ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: key, Start: from, Stop: 0, ByScore: true, Rev: true, Count: int64(n) + 1,
	}).Result()
	for i, member := range members {
		id, err := strconv.ParseInt(member, 10, 64)
		if err != nil {
			return page, err
		}
		if i == n {
			page.Next = page.IDs[n-1]
			break
		}
		page.IDs = append(page.IDs, id)
	}
	return page, err
}
