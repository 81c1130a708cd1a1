package feedcache_test

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/feedcache"
)

// What the feeds of all layouts have in common.
const (
	benchFeeds   = 2000
	benchEntries = 800
	benchSlack   = 200 // entries above benchEntries, where a layout trims seldom
	benchTTL     = 14 * 24 * time.Hour
)

// A benchLayout keeps feeds in Redis. All but the package itself leave out
// what they need besides: a lease for who fills a feed, a floor, removals.
// That is in their favour.
type benchLayout interface {
	// fill makes feeds of the IDs benchEntries-1 down to 0.
	fill(ctx context.Context, owners []int64) error
	push(ctx context.Context, owners []int64, id int64) error
	page(ctx context.Context, owner int64) ([]int64, error) // the newest 20
}

// A benchCandidate says how a layout is opened. Every cycle pushes a feed is
// as it was: trimmed, or compacted.
type benchCandidate struct {
	name     string
	cycle    int
	settings map[string]string
	open     func(*redis.Client) (benchLayout, error)
}

var benchCandidates = []benchCandidate{
	{"zset", 1, nil, func(rdb *redis.Client) (benchLayout, error) { return benchZset{rdb: rdb}, nil }},
	{"zset-lex", 1, nil, func(rdb *redis.Client) (benchLayout, error) { return benchZset{rdb, true}, nil }},
	{
		"zset-listpack", 1,
		map[string]string{"zset-max-listpack-entries": "1024"},
		func(rdb *redis.Client) (benchLayout, error) { return benchZset{rdb: rdb}, nil },
	},
	{"list", benchSlack, nil, func(rdb *redis.Client) (benchLayout, error) { return benchList{rdb}, nil }},
	{
		// Its buffer doubles with the first push, so that a larger slack is free.
		"string-append", benchEntries, nil,
		func(rdb *redis.Client) (benchLayout, error) {
			return benchString{rdb, appendScript, 2 * benchEntries, 0}, nil
		},
	},
	{
		"string-slotted", benchSlack, nil,
		func(rdb *redis.Client) (benchLayout, error) {
			return benchString{rdb, slotScript, benchEntries + benchSlack, benchEntries + benchSlack}, nil
		},
	},
	{"feedcache", 300, nil, openBenchFeeds},
}

// benchID is the i-th of the IDs that the benchmarks store: three years after
// the layout's epoch, 100 seconds apart, from all shards.
func benchID(i int) int64 {
	ms := int64(3*31_557_600_000) + int64(i)*100_003
	return ms<<23 | int64(i)*4_999%8192<<10 | int64(i)*131%1024
}

func benchKey(owner int64) string { return "feed:" + strconv.FormatInt(owner, 10) }

// eachWindow calls send with so many owners at a time, two calls at once, as
// feedcache does.
func eachWindow(owners []int64, size int, send func(owners []int64) error) error {
	var g errgroup.Group
	g.SetLimit(2)
	for window := range slices.Chunk(owners, size) {
		g.Go(func() error { return send(window) })
	}
	return g.Wait()
}

// benchWindow is how many feeds feedcache pushes to in one pipeline.
const benchWindow = 500

// fillWindow is smaller, as whole feeds travel.
const fillWindow = 50

// sendEach sends what queue says for each owner in one pipeline.
func sendEach[C redis.Cmder](
	ctx context.Context, rdb *redis.Client, owners []int64, queue func(redis.Pipeliner, string) C,
) ([]C, error) {
	cmds := make([]C, len(owners))
	pipe := rdb.Pipeline()
	for i, owner := range owners {
		cmds[i] = queue(pipe, benchKey(owner))
	}
	_, err := pipe.Exec(ctx)
	return cmds, err
}

// fillEach makes each feed by one command and gives it a TTL.
func fillEach[C redis.Cmder](
	ctx context.Context, rdb *redis.Client, owners []int64, queue func(redis.Pipeliner, string) C,
) error {
	return eachWindow(owners, fillWindow, func(owners []int64) error {
		_, err := sendEach(ctx, rdb, owners, func(pipe redis.Pipeliner, key string) *redis.BoolCmd {
			queue(pipe, key)
			return pipe.Expire(ctx, key, benchTTL)
		})
		return err
	})
}

// benchZset is a sorted set. The usual feed, and the baseline, has the ID as a
// score, which rounds it, and in decimal as the member. Sorted by the members
// IDs are exact: all scores are 0, and a member has the 8 bytes of its ID.
type benchZset struct {
	rdb *redis.Client
	lex bool
}

func (l benchZset) entry(id int64) redis.Z {
	if l.lex {
		return redis.Z{Member: benchPacked(id)}
	}
	return redis.Z{Score: float64(id), Member: strconv.FormatInt(id, 10)}
}

func (l benchZset) fill(ctx context.Context, owners []int64) error {
	var entries []redis.Z
	for i := range benchEntries {
		entries = append(entries, l.entry(benchID(benchEntries-1-i))) // a listpack is searched from the lowest
	}
	return fillEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) redis.Cmder {
		return pipe.ZAdd(ctx, key, entries...)
	})
}

func (l benchZset) push(ctx context.Context, owners []int64, id int64) error {
	return eachWindow(owners, benchWindow, func(owners []int64) error {
		_, err := sendEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) *redis.IntCmd {
			pipe.ZAdd(ctx, key, l.entry(id))
			return pipe.ZRemRangeByRank(ctx, key, 0, -benchEntries-1)
		})
		return err
	})
}

func (l benchZset) page(ctx context.Context, owner int64) ([]int64, error) {
	page := redis.ZRangeArgs{Key: benchKey(owner), Start: 0, Stop: 19, Rev: true}
	if !l.lex {
		return decimals(l.rdb.ZRangeArgs(ctx, page).Result())
	}
	page.Start, page.Stop, page.ByLex, page.Count = "+", "-", true, 20
	members, err := l.rdb.ZRangeArgs(ctx, page).Result()
	ids := make([]int64, len(members))
	for i, member := range members {
		ids[i] = int64(binary.BigEndian.Uint64([]byte(member)))
	}
	return ids, err
}

func decimals(texts []string, err error) ([]int64, error) {
	ids := make([]int64, len(texts))
	for i, text := range texts {
		if err == nil {
			ids[i], err = strconv.ParseInt(text, 10, 64)
		}
	}
	return ids, err
}

// benchList is a list of decimal IDs in the order they arrived, trimmed when
// it has grown by the slack. A page trusts that order, and that no ID arrived
// twice.
type benchList struct{ rdb *redis.Client }

func (l benchList) fill(ctx context.Context, owners []int64) error {
	var entries []any
	for i := range benchEntries {
		entries = append(entries, benchID(i))
	}
	return fillEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) redis.Cmder {
		return pipe.LPush(ctx, key, entries...)
	})
}

func (l benchList) push(ctx context.Context, owners []int64, id int64) error {
	return eachWindow(owners, benchWindow, func(owners []int64) error {
		lengths, err := sendEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) *redis.IntCmd {
			return pipe.LPushX(ctx, key, id)
		})
		if err != nil {
			return err
		}
		long := whose(owners, func(i int) bool { return lengths[i].Val() > benchEntries+benchSlack })
		_, err = sendEach(ctx, l.rdb, long, func(pipe redis.Pipeliner, key string) *redis.StatusCmd {
			return pipe.LTrim(ctx, key, 0, benchEntries-1)
		})
		return err
	})
}

// whose returns the owners at those places of a window that are.
func whose(owners []int64, are func(i int) bool) []int64 {
	var found []int64
	for i, owner := range owners {
		if are(i) {
			found = append(found, owner)
		}
	}
	return found
}

func (l benchList) page(ctx context.Context, owner int64) ([]int64, error) {
	return decimals(l.rdb.LRange(ctx, benchKey(owner), 0, 19).Result())
}

// benchString is a string: how many entries it has, in 4 bytes, and the
// entries in 8 bytes each, in the order they arrived. It grows by APPEND, or
// has empty slots for those to come, as its script says. A page reads it all.
type benchString struct {
	rdb    *redis.Client
	script *redis.Script
	most   int // entries, then it is compacted
	slots  int // in all, so that it need not grow
}

// Both scripts add ARGV[1] to a feed that is there, and return how many
// entries it has then.
var (
	appendScript = redis.NewScript(`
if redis.call('STRLEN', KEYS[1]) == 0 then return -1 end
return (redis.call('APPEND', KEYS[1], ARGV[1]) - 4) / 8`)

	slotScript = redis.NewScript(`
local h = redis.call('GETRANGE', KEYS[1], 0, 3)
if #h == 0 then return -1 end
local n = struct.unpack('>I4', h)
redis.call('SETRANGE', KEYS[1], 4 + 8 * n, ARGV[1])
redis.call('SETRANGE', KEYS[1], 0, struct.pack('>I4', n + 1))
return n + 1`)

	// rewriteScript puts ARGV[3] in the place of a feed that still has ARGV[1]
	// bytes and the header ARGV[2].
	rewriteScript = redis.NewScript(`
if redis.call('STRLEN', KEYS[1]) ~= tonumber(ARGV[1]) then return 0 end
if redis.call('GETRANGE', KEYS[1], 0, 3) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'KEEPTTL')
return 1`)
)

func benchPacked(ids ...int64) string {
	b := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	return string(b)
}

func (l benchString) encode(ids []int64) string {
	value := string(binary.BigEndian.AppendUint32(nil, uint32(len(ids)))) + benchPacked(ids...)
	return value + string(make([]byte, max(0, 4+8*l.slots-len(value))))
}

// decode returns the entries, newest first.
func (l benchString) decode(value string) []int64 {
	entries := value[4:]
	if l.slots > 0 {
		entries = entries[:8*binary.BigEndian.Uint32([]byte(value))]
	}
	ids := make([]int64, len(entries)/8)
	for i := range ids {
		ids[i] = int64(binary.BigEndian.Uint64([]byte(entries[8*i : 8*i+8])))
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	return slices.Compact(ids)
}

func (l benchString) fill(ctx context.Context, owners []int64) error {
	for _, script := range []*redis.Script{l.script, rewriteScript} {
		if err := script.Load(ctx, l.rdb).Err(); err != nil {
			return err
		}
	}
	var ids []int64
	for i := range benchEntries {
		ids = append(ids, benchID(i))
	}
	return fillEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) redis.Cmder {
		return pipe.Set(ctx, key, l.encode(ids), 0)
	})
}

func (l benchString) push(ctx context.Context, owners []int64, id int64) error {
	op := benchPacked(id)
	return eachWindow(owners, benchWindow, func(owners []int64) error {
		lengths, err := sendEach(ctx, l.rdb, owners, func(pipe redis.Pipeliner, key string) *redis.Cmd {
			return l.script.EvalSha(ctx, pipe, []string{key}, op)
		})
		if err != nil {
			return err
		}
		long := whose(owners, func(i int) bool { n, _ := lengths[i].Int(); return n >= l.most })
		values, err := sendEach(ctx, l.rdb, long, func(pipe redis.Pipeliner, key string) *redis.StringCmd {
			return pipe.Get(ctx, key)
		})
		if err != nil || len(long) == 0 {
			return err
		}
		pipe := l.rdb.Pipeline()
		for i, owner := range long {
			value := values[i].Val()
			rewriteScript.EvalSha(ctx, pipe, []string{benchKey(owner)},
				len(value), value[:4], l.encode(l.decode(value)[:benchEntries]))
		}
		_, err = pipe.Exec(ctx)
		return err
	})
}

func (l benchString) page(ctx context.Context, owner int64) ([]int64, error) {
	value, err := l.rdb.Get(ctx, benchKey(owner)).Result()
	if err != nil {
		return nil, err
	}
	return l.decode(value)[:20], nil
}

// benchFeedcache is this package.
type benchFeedcache struct{ *feedcache.Feeds }

func openBenchFeeds(rdb *redis.Client) (benchLayout, error) {
	feeds, err := feedcache.New(rdb, benchSource, feedcache.Config{Cap: benchEntries})
	return benchFeedcache{feeds}, err
}

// benchSource has the IDs benchEntries-1 down to 0 for every owner.
func benchSource(_ context.Context, _, before int64, n int) ([]int64, error) {
	var ids []int64
	for i := benchEntries - 1; i >= 0 && len(ids) < n; i-- {
		if id := benchID(i); id < before {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (l benchFeedcache) fill(ctx context.Context, owners []int64) error {
	return eachWindow(owners, len(owners)/8+1, func(owners []int64) error {
		for _, owner := range owners {
			if _, err := l.Page(ctx, owner, 0, 1); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l benchFeedcache) push(ctx context.Context, owners []int64, id int64) error {
	_, err := l.Push(ctx, slices.Values(owners), id)
	return err
}

func (l benchFeedcache) page(ctx context.Context, owner int64) ([]int64, error) {
	page, err := l.Page(ctx, owner, 0, 20)
	return page.IDs, err
}
