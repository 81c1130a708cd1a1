package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// feed is what the model drives: Feeds, or the control below.
type feed interface {
	pager
	Push(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error)
	Remove(ctx context.Context, owners iter.Seq[int64], ids ...int64) (feedcache.Delivery, error)
	Drop(ctx context.Context, owners ...int64) error
}

// What can be wrong with a walk.
var (
	errLost     = errors.New("lost")
	errInvented = errors.New("invented")
	errBack     = errors.New("removed, but shown")
	errOrder    = errors.New("not strictly descending")
	errKept     = errors.New("shown, but not kept")
	errUnseen   = errors.New("wrong number of unseen IDs")
)

// The posts of a model have IDs of one shard and one millisecond, and their
// authors in turn.
const (
	posts   = 96
	authors = 4
)

// An op is on its way to the feed: a push, a removal or a mark.
type op struct {
	kind byte // '+', '-', 's'
	id   int64
}

// A model is one owner's feed with its store of record, and with what is on its
// way: late, out of order and repeated. It knows what a reader may see, not how.
type model struct {
	draw  func(n int) int // 0 to n-1
	feeds []feed          // as many processes have them, all of the same keys
	src   *table
	owner int64
	base  int64
	fault func(ctx context.Context) error // now and then

	alive         map[int64]bool // each post there ever was, and whether it is there
	follows       [authors]bool
	mark, marked  int64          // stored, and delivered at least
	pending, done []op           // done may be delivered again
	due           map[int64]bool // it was delivered: pages show it for as long as it is visible
	gone          map[int64]bool // the removal was delivered
	changed       map[int64]bool // since the walk began
	editing       int
	clock         time.Time

	// A push may bring back what was removed if this life of the key has not
	// been told of the removal.
	tombs, back map[int64]bool
}

func newModel(draw func(int) int, owner, base int64) *model {
	m := &model{
		draw: draw, src: &table{}, owner: owner, base: base, follows: [authors]bool{true, true, true, true},
		alive: map[int64]bool{}, due: map[int64]bool{}, gone: map[int64]bool{}, changed: map[int64]bool{},
		tombs: map[int64]bool{}, back: map[int64]bool{}, clock: time.Now(),
	}
	for range draw(80) { // posts from before there was a feed
		m.post()
	}
	for _, o := range m.pending {
		m.due[o.id] = true
	}
	m.pending = nil
	return m
}

// open adds n Feeds, each as another process would have it.
func (m *model) open(rdb redis.UniversalClient, n int, cfg feedcache.Config) error {
	cfg.Mark = func(context.Context, int64) (int64, error) { return m.mark, nil }
	cfg.Now = func() time.Time { return m.clock }
	for range n {
		f, err := feedcache.New(rdb, m.source, cfg)
		if err != nil {
			return err
		}
		m.feeds = append(m.feeds, f)
	}
	return nil
}

func (m *model) source(ctx context.Context, owner, before int64, n int) ([]int64, error) {
	if owner != m.owner {
		return nil, nil
	}
	if before == math.MaxInt64 { // under a new lease
		clear(m.tombs)
		clear(m.back)
	}
	return m.src.Source(ctx, owner, before, n)
}

func (m *model) feed() feed { return m.feeds[m.draw(len(m.feeds))] }

// full returns one of the feeds, or nil if the model drives the control.
func (m *model) full() *feedcache.Feeds {
	f, _ := m.feed().(*feedcache.Feeds)
	return f
}

func (m *model) author(id int64) int64   { return (id - m.base) % authors }
func (m *model) visible(id int64) bool   { return m.alive[id] && m.follows[m.author(id)] }
func (m *model) randomID() int64         { return m.base + 1 + int64(m.draw(posts)) }
func (m *model) relative(id int64) int64 { return id - m.base }
func (m *model) mustShow(id int64) bool  { return m.due[id] && m.visible(id) }

// mayShow adds IDs whose removal is on its way, and those that came back.
func (m *model) mayShow(id int64) bool {
	return m.visible(id) || m.back[id] || m.follows[m.author(id)] && !m.gone[id]
}

// change makes one change, anything but a read.
func (m *model) change(ctx context.Context) error {
	switch m.draw(12) {
	case 0, 1, 2:
		m.post()
	case 3:
		if rows := m.src.newest(m.owner); len(rows) > 0 {
			id := rows[m.draw(len(rows))]
			m.alive[id], m.changed[id] = false, true
			m.src.remove(m.owner, id)
			m.pending = append(m.pending, op{'-', id})
		}
	case 4, 5, 6:
		if len(m.pending) > 0 {
			i := m.draw(len(m.pending))
			o := m.pending[i]
			m.pending = slices.Delete(m.pending, i, i+1)
			m.done = append(m.done, o)
			return m.deliver(ctx, o)
		}
	case 7:
		if len(m.done) > 0 {
			return m.deliver(ctx, m.done[m.draw(len(m.done))])
		}
	case 8:
		if m.editing < 2 {
			return m.toggle(ctx)
		}
	case 9:
		if m.draw(3) == 0 {
			return m.feed().Drop(ctx, m.owner) // or an eviction
		}
	case 10:
		if id := m.randomID(); m.alive[id] {
			m.mark = max(m.mark, id)
			m.pending = append(m.pending, op{'s', id})
		}
	case 11:
		if m.clock = m.clock.Add(6 * 24 * time.Hour); m.fault != nil {
			return m.fault(ctx)
		}
	}
	return nil
}

// some makes up to n changes.
func (m *model) some(ctx context.Context, n int) (err error) {
	for range m.draw(n + 1) {
		err = errors.Join(err, m.change(ctx))
	}
	return err
}

func (m *model) post() {
	id := m.randomID()
	if _, was := m.alive[id]; was {
		return
	}
	m.alive[id] = true
	if m.visible(id) {
		m.src.insert(m.owner, id)
		m.pending = append(m.pending, op{'+', id})
	}
}

func (m *model) deliver(ctx context.Context, o op) error {
	switch o.kind {
	case '-':
		d, err := m.feed().Remove(ctx, one(m.owner), o.id)
		m.gone[o.id] = true
		if d.Warm == 1 {
			m.tombs[o.id] = true
			delete(m.back, o.id)
		}
		return err
	case 's':
		if f := m.full(); f != nil {
			m.marked = max(m.marked, o.id)
			return f.Seen(ctx, m.owner, o.id)
		}
		return nil
	}
	d, err := m.feed().Push(ctx, one(m.owner), o.id)
	m.due[o.id] = true
	if d.Warm == 1 && !m.visible(o.id) && !m.tombs[o.id] {
		m.back[o.id] = true
	}
	return err
}

// toggle follows or unfollows an author: the rows first, then the feed, with
// changes between what edit reads and what Edit does with it.
func (m *model) toggle(ctx context.Context) error {
	f := m.full()
	if f == nil {
		return nil
	}
	author := int64(m.draw(authors))
	m.follows[author] = !m.follows[author]
	for id, alive := range m.alive {
		switch {
		case !alive || m.author(id) != author:
			continue
		case m.follows[author]:
			m.src.insert(m.owner, id)
		default:
			m.src.remove(m.owner, id)
		}
		m.changed[id] = true
	}
	var edited []int64
	m.editing++
	defer func() { m.editing-- }()
	err := f.Edit(ctx, m.owner, func(ids []int64) ([]int64, error) {
		edited = slices.DeleteFunc(slices.Clone(ids), func(id int64) bool { return m.author(id) == author })
		for id, alive := range m.alive {
			if alive && m.follows[author] && m.author(id) == author {
				edited = append(edited, id)
			}
		}
		for _, id := range ids {
			if !slices.Contains(edited, id) {
				m.tombs[id] = true
				delete(m.back, id)
			}
		}
		for _, id := range edited {
			if !slices.Contains(ids, id) {
				delete(m.tombs, id)
			}
		}
		return edited, m.some(ctx, 3)
	})
	for _, id := range edited {
		m.due[id] = true
	}
	return err
}

// walk reads the feed to its end, by any of the feeds, and calls between after
// each page.
func (m *model) walk(ctx context.Context, keep feedcache.Keep, between func() error) ([]int64, error) {
	ids, err := walkAtRandom(m.draw, between, func(before int64, n int) (feedcache.Page, error) {
		if f := m.full(); f != nil && keep != nil {
			return f.PageKeep(ctx, m.owner, before, n, keep)
		}
		return m.feed().Page(ctx, m.owner, before, n)
	})
	return ids, errors.Join(err, m.sound(ids))
}

// walkAtRandom reads pages of any size to the end.
func walkAtRandom(
	draw func(int) int, between func() error, read func(before int64, n int) (feedcache.Page, error),
) (ids []int64, err error) {
	for before, more := int64(0), true; more; {
		n := 1 + draw(12)
		page, err := read(before, n)
		switch {
		case err != nil:
			return nil, err
		case len(page.IDs) > n || len(page.IDs) < n && page.Next != 0:
			return nil, fmt.Errorf("got %d IDs and cursor %d, want %d", len(page.IDs), page.Next, n)
		}
		if err := between(); err != nil {
			return nil, err
		}
		ids = append(ids, page.IDs...)
		before, more = page.Next, page.Next != 0
	}
	return ids, nil
}

func quiet() error { return nil }

// sound checks what holds for any list of IDs at any time.
func (m *model) sound(ids []int64) error {
	for i, id := range ids {
		if _, known := m.alive[id]; !known {
			return fmt.Errorf("%w: %d", errInvented, m.relative(id))
		}
		if i > 0 && ids[i-1] <= id {
			return fmt.Errorf("%w: %d after %d", errOrder, m.relative(id), m.relative(ids[i-1]))
		}
	}
	return nil
}

// check walks the feed while nothing else happens.
func (m *model) check(ctx context.Context) error {
	if err := m.checkWalk(ctx, nil, func(int64) bool { return true }); err != nil {
		return err
	}
	f := m.full()
	if f == nil {
		return nil
	}
	some := int64(m.draw(5))
	lets := func(id int64) bool { return m.relative(id)%5 == some }
	err := m.checkWalk(ctx, func(_ context.Context, ids []int64) ([]int64, error) {
		slices.Reverse(ids)
		return slices.DeleteFunc(ids, func(id int64) bool { return !lets(id) }), nil
	}, lets)
	if err != nil {
		return err
	}
	u, err := f.Unseen(ctx, m.owner)
	if err != nil {
		return err
	}
	var least, most int
	for id := range m.alive {
		if id > u.Mark && m.mustShow(id) {
			least++
		}
		if id > u.Mark && m.mayShow(id) {
			most++
		}
	}
	if u.Mark < m.marked || u.Mark > m.mark || u.N > most || u.N < least && !u.More {
		return fmt.Errorf("%w: %+v, want %d to %d above a mark of %d to %d", errUnseen, u, least, most, m.marked, m.mark)
	}
	return nil
}

// checkWalk walks the feed and compares with what keep lets through.
func (m *model) checkWalk(ctx context.Context, keep feedcache.Keep, lets func(id int64) bool) error {
	got, err := m.walk(ctx, keep, quiet)
	if err != nil {
		return err
	}
	for id := range m.alive {
		switch shown := slices.Contains(got, id); {
		case !shown && m.mustShow(id) && lets(id):
			return fmt.Errorf("%w: %d", errLost, m.relative(id))
		case shown && !m.mayShow(id):
			return fmt.Errorf("%w: %d", errBack, m.relative(id))
		case shown && !lets(id):
			return fmt.Errorf("%w: %d", errKept, m.relative(id))
		}
	}
	return nil
}

// busy walks the feed while it changes: between pages, within each read of the
// Source, so in the middle of fills, and within Keep.
func (m *model) busy(ctx context.Context) error {
	clear(m.changed)
	var there []int64
	for id := range m.alive {
		if m.mustShow(id) {
			there = append(there, id)
		}
	}
	var inside error
	changes := func() error {
		inside = errors.Join(inside, m.some(ctx, 3))
		return inside
	}
	var keep feedcache.Keep
	if m.draw(2) == 0 {
		keep = func(_ context.Context, ids []int64) ([]int64, error) { return ids, changes() }
	}
	m.src.around = func(bool) { _ = changes() }
	got, err := m.walk(ctx, keep, changes)
	m.src.around = nil
	if err := errors.Join(inside, err); err != nil {
		return err
	}
	for _, id := range there {
		if !m.changed[id] && !slices.Contains(got, id) {
			return fmt.Errorf("%w in a walk: %d", errLost, m.relative(id))
		}
	}
	return nil
}

// run makes steps changes, with walks in between, of which none is busy if
// calm.
func (m *model) run(ctx context.Context, steps int, calm bool) error {
	for range steps {
		err := error(nil)
		switch i := m.draw(16); {
		case i == 0:
			err = m.check(ctx)
		case i == 1 && !calm:
			err = m.busy(ctx)
		default:
			err = m.change(ctx)
		}
		if err != nil {
			return err
		}
	}
	return m.check(ctx)
}

var ages = []int{0, 3, 10, 34} // years

func TestModel(t *testing.T) {
	t.Parallel()
	ctx, rdb := t.Context(), testserver.Redis(t)
	var owner atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }
		base := idAt(rapid.SampledFrom(ages).Draw(rt, "years"), 0)
		m := newModel(draw, owner.Add(1), base)
		err := m.open(rdb, 3, feedcache.Config{Cap: rapid.SampledFrom([]int{1, 2, 5, 8, 20, 40, 64}).Draw(rt, "cap")})
		if err == nil {
			err = m.run(ctx, 80, false)
		}
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// search runs a model with each of the seeds until one fails: in the way that
// is wanted, if one is.
func search(seeds uint64, want error, run func(draw func(int) int, seed int64) error) (err error) {
	for seed := uint64(1); seed <= seeds; seed++ {
		err = run(rand.New(rand.NewPCG(seed, seed)).IntN, int64(seed))
		if err != nil && (want == nil || errors.Is(err, want)) {
			return err
		}
	}
	return err
}
