package feedcache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

var (
	errCrash   = errors.New("crash")
	errHurried = errors.New("pulls while readers may not know of it")
)

// A crowd is some owners and authors, with a store of record, jobs on their way,
// and authors that switch between push and pull at any moment. As in model, it
// knows what each owner may see.
type crowd struct {
	draw    func(n int) int
	base    int64
	hybrids []*feedcache.Hybrid // as many processes have them
	fanouts []*feedcache.Fanout
	feeds   *feedcache.Feeds
	boxes   *feedcache.Feeds
	routes  *routeTable

	mu      sync.Mutex // guards what Sources and Followers read
	alive   map[int64]bool
	follows map[pair]bool

	pending, done []task
	running       map[int64]int // fan-outs and switches, by author
	switching     map[int64]bool
	depth         int

	due     map[pair]bool  // owner and ID: pages show it for as long as it is visible
	pushes  map[int64]int  // how often an ID was pushed, or may have been
	gone    map[int64]bool // the removal was delivered, and no push since it began
	late    map[pair]bool  // owner and author: a fan-out was under way at the unfollow
	changed map[pair]bool  // owner and ID, since the walk began
}

// A task is a job on its way.
type task struct {
	feedcache.Job
	pushes int // of its ID, when it began
}

// A pair is an owner with an ID or an author.
type pair struct{ owner, of int64 }

const (
	crowdOwners  = 4
	crowdAuthors = 3
)

var (
	owners  = seq(100+crowdOwners, 101)
	artists = seq(crowdAuthors, 1)
)

type crowdConfig struct {
	prefix       string
	boxes        redis.UniversalClient // nil: where the feeds are
	forgetsSkip  bool
	staleForever bool
}

func newCrowd(draw func(int) int, rdb redis.UniversalClient, cfg crowdConfig) (*crowd, error) {
	c := &crowd{
		draw: draw, base: idAt([]int{0, 3, 34}[draw(3)], 0), alive: map[int64]bool{}, follows: map[pair]bool{},
		running: map[int64]int{}, switching: map[int64]bool{}, due: map[pair]bool{}, pushes: map[int64]int{}, gone: map[int64]bool{},
		late: map[pair]bool{}, changed: map[pair]bool{},
	}
	c.routes = &routeTable{crowd: c, cfg: cfg, rows: map[int64]routeRow{}, copies: map[int64]routeCopy{}}
	for _, owner := range owners {
		for _, author := range artists {
			c.follows[pair{owner, author}] = draw(4) > 0
		}
	}
	for range draw(60) { // posts from before there were feeds
		c.post()
	}
	for _, job := range c.pending {
		c.delivered(job)
	}
	c.pending = nil
	caps := []int{1, 5, 16, 40}
	feedsCap, boxesCap := caps[draw(4)], caps[draw(4)]
	if cfg.boxes == nil {
		cfg.boxes = rdb
	}
	for range 2 {
		feeds, err := feedcache.New(rdb, c.timeline, feedcache.Config{Prefix: cfg.prefix + "feed", Cap: feedsCap})
		if err != nil {
			return nil, err
		}
		boxes, err := feedcache.New(cfg.boxes, c.outbox, feedcache.Config{Prefix: cfg.prefix + "outbox", Cap: boxesCap})
		if err != nil {
			return nil, err
		}
		hybrid, err := feedcache.NewHybrid(feeds, boxes, c.routes)
		if err != nil {
			return nil, err
		}
		fanout, err := feedcache.NewFanout(feeds, c.followers, feedcache.FanoutConfig{
			PageSize: 1 + draw(3), Outboxes: boxes, Routes: c.routes, RouteAge: routeAge,
		})
		if err != nil {
			return nil, err
		}
		c.hybrids, c.fanouts, c.feeds, c.boxes = append(c.hybrids, hybrid), append(c.fanouts, fanout), feeds, boxes
	}
	return c, nil
}

func (c *crowd) author(id int64) int64     { return 1 + (id-c.base)%crowdAuthors }
func (c *crowd) hybrid() *feedcache.Hybrid { return c.hybrids[c.draw(len(c.hybrids))] }
func (c *crowd) fanout() *feedcache.Fanout { return c.fanouts[c.draw(len(c.fanouts))] }

// The store of record.

func (c *crowd) newest(before int64, n int, in func(id int64) bool) (ids []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := min(before-1, c.base+posts); id > c.base && len(ids) < n; id-- {
		if c.alive[id] && in(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func (c *crowd) timeline(_ context.Context, owner, before int64, n int) ([]int64, error) {
	return c.newest(before, n, func(id int64) bool { return c.follows[pair{owner, c.author(id)}] }), nil
}

func (c *crowd) outbox(_ context.Context, author, before int64, n int) ([]int64, error) {
	return c.newest(before, n, func(id int64) bool { return c.author(id) == author }), nil
}

func (c *crowd) followers(_ context.Context, author, after int64, n int) (found []int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, owner := range slices.Backward(owners) {
		if owner > after && c.follows[pair{owner, author}] && len(found) < n {
			found = append(found, owner)
		}
	}
	return found, nil
}

func (c *crowd) visible(owner, id int64) bool {
	return c.alive[id] && c.follows[pair{owner, c.author(id)}]
}

func (c *crowd) mustShow(owner, id int64) bool { return c.visible(owner, id) && c.due[pair{owner, id}] }

func (c *crowd) mayShow(owner, id int64) bool {
	by := pair{owner, c.author(id)}
	return c.visible(owner, id) || c.late[by] || c.follows[by] && !c.gone[id]
}

// routeAge is how long Switch waits, which counts here as the end of all copies
// of routes.
const routeAge = time.Millisecond

// A routeTable is Routes as a table would be, with readers that go by copies
// for as long as they may.
type routeTable struct {
	crowd  *crowd
	cfg    crowdConfig
	rows   map[int64]routeRow
	copies map[int64]routeCopy // of each owner
	sets   int
}

type routeRow struct {
	route  feedcache.Route
	since  int64
	set    int
	bothAt time.Time
}

type routeCopy struct {
	set    int // the last one it knows
	pulled []int64
}

func (r *routeTable) Pulled(ctx context.Context, owner int64) ([]int64, error) {
	copied, ok := r.copies[owner]
	if !ok || r.crowd.draw(3) == 0 {
		copied = routeCopy{set: r.sets}
		for _, author := range artists {
			if r.rows[author].route != feedcache.RoutePush {
				copied.pulled = append(copied.pulled, author)
			}
		}
		r.copies[owner] = copied
	}
	pulled := slices.DeleteFunc(slices.Clone(copied.pulled), func(author int64) bool {
		return !r.crowd.follows[pair{owner, author}]
	})
	return pulled, r.crowd.some(ctx, 2)
}

func (r *routeTable) Skip(ctx context.Context, author, id int64) (bool, error) {
	err := r.crowd.some(ctx, 2)
	row := r.rows[author]
	if row.route != feedcache.RoutePull {
		return false, errors.Join(err, r.crowd.some(ctx, 2))
	}
	if (row.since == 0 || id < row.since) && !r.cfg.forgetsSkip {
		row.since = id
	}
	r.rows[author] = row
	return true, err
}

func (r *routeTable) Set(ctx context.Context, author int64, route feedcache.Route) (int64, error) {
	if err := errors.Join(r.crowd.some(ctx, 2), r.crowd.crash()); err != nil {
		return 0, err
	}
	r.sets++
	row := r.rows[author]
	row.route = route
	since := row.since
	switch route {
	case feedcache.RoutePush:
		row.since = 0
	case feedcache.RouteBoth:
		row.set, row.bothAt = r.sets, time.Now()
	case feedcache.RoutePull:
		if time.Since(row.bothAt) < routeAge {
			return 0, errHurried
		}
		for owner, copied := range r.copies {
			if copied.set < row.set && !r.cfg.staleForever {
				delete(r.copies, owner)
			}
		}
	}
	r.rows[author] = row
	return since, errors.Join(r.crowd.some(ctx, 2), r.crowd.crash())
}

// crash is the end of a process, now and then.
func (c *crowd) crash() error {
	if c.draw(12) == 0 {
		return errCrash
	}
	return nil
}

// some makes up to n changes in the middle of something else.
func (c *crowd) some(ctx context.Context, n int) (err error) {
	if c.depth > 2 {
		return nil
	}
	c.depth++
	defer func() { c.depth-- }()
	for range c.draw(n + 1) {
		err = errors.Join(err, c.change(ctx))
	}
	return err
}

func (c *crowd) change(ctx context.Context) error {
	switch c.draw(12) {
	case 0, 1, 2:
		c.post()
	case 3:
		c.delete()
	case 4, 5, 6:
		if len(c.pending) > 0 {
			i := c.draw(len(c.pending))
			job := c.pending[i]
			c.pending = slices.Delete(c.pending, i, i+1)
			return c.run(ctx, job)
		}
	case 7:
		if len(c.done) > 0 {
			return c.run(ctx, c.done[c.draw(len(c.done))])
		}
	case 8:
		return c.toggle(ctx)
	case 9, 10:
		return c.turn(ctx)
	case 11:
		if c.draw(2) == 0 {
			return c.feeds.Drop(ctx, owners[c.draw(len(owners))])
		}
		return c.boxes.Drop(ctx, artists[c.draw(len(artists))])
	}
	return nil
}

func (c *crowd) post() {
	id := c.base + 1 + int64(c.draw(posts))
	if _, was := c.alive[id]; was {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[id] = true
	c.pending = append(c.pending, task{Job: feedcache.Job{Author: c.author(id), IDs: []int64{id}}})
}

func (c *crowd) delete() {
	id := c.base + 1 + int64(c.draw(posts))
	if !c.alive[id] {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[id] = false
	for _, owner := range owners {
		c.changed[pair{owner, id}] = true
	}
	c.pending = append(c.pending, task{Job: feedcache.Job{Author: c.author(id), IDs: []int64{id}, Remove: true}})
}

// run does a job, or a part of it until it crashes.
func (c *crowd) run(ctx context.Context, job task) error {
	c.running[job.Author]++
	defer func() { c.running[job.Author]-- }()
	id, stored := job.IDs[0], job.After
	if stored == 0 {
		job.pushes = c.pushes[id]
	}
	_, err := c.fanout().Run(ctx, job.Job, func(_ context.Context, cursor int64) error {
		if err := errors.Join(c.some(ctx, 2), c.crash()); err != nil {
			return err
		}
		stored = cursor
		return c.crash()
	})
	if !job.Remove {
		c.pushedTo(id)
	}
	if errors.Is(err, errCrash) {
		job.After = stored
		c.pending = append(c.pending, job)
		return nil
	}
	if err == nil {
		job.After = 0
		c.done = append(c.done, job)
		c.delivered(job)
	}
	return err
}

func (c *crowd) delivered(job task) {
	id := job.IDs[0]
	for _, owner := range owners {
		c.due[pair{owner, id}] = true
	}
	if job.Remove && job.pushes == c.pushes[id] {
		c.gone[id] = true
	}
}

// pushedTo notes that an ID may have come back after its removal.
func (c *crowd) pushedTo(id int64) {
	c.pushes[id]++
	delete(c.gone, id)
}

// toggle makes an owner follow or unfollow an author: the row first, then the
// feed.
func (c *crowd) toggle(ctx context.Context) error {
	by := pair{owners[c.draw(len(owners))], artists[c.draw(len(artists))]}
	c.mu.Lock()
	c.follows[by] = !c.follows[by]
	c.late[by] = c.running[by.of] > 0
	for id := range c.alive {
		if c.author(id) == by.of {
			c.changed[pair{by.owner, id}] = true
		}
	}
	c.mu.Unlock()
	var edited []int64
	err := c.feeds.Edit(ctx, by.owner, func(ids []int64) ([]int64, error) {
		edited = slices.DeleteFunc(slices.Clone(ids), func(id int64) bool { return c.author(id) == by.of })
		if c.follows[by] {
			edited = append(edited, c.newest(c.base+posts+1, posts, func(id int64) bool { return c.author(id) == by.of })...)
		}
		return edited, nil
	})
	if c.follows[by] {
		for _, id := range edited {
			c.due[pair{by.owner, id}] = true
		}
	}
	return err
}

// turn switches an author.
func (c *crowd) turn(ctx context.Context) error {
	author, to := artists[c.draw(len(artists))], []feedcache.Route{feedcache.RoutePush, feedcache.RoutePull}[c.draw(2)]
	if c.switching[author] {
		return nil // one at a time
	}
	c.switching[author] = true
	c.running[author]++
	err := c.fanout().Switch(ctx, author, to)
	c.running[author]--
	c.switching[author] = false
	for id := range c.alive {
		if c.author(id) == author {
			c.pushedTo(id)
		}
	}
	if errors.Is(err, errCrash) {
		return nil
	}
	return err
}

// check walks all feeds while nothing else happens.
func (c *crowd) check(ctx context.Context) error {
	c.depth += 10 // so that nothing does
	defer func() { c.depth -= 10 }()
	for _, owner := range owners {
		got, err := walkAtRandom(c.draw, quiet, func(before int64, n int) (feedcache.Page, error) {
			return c.hybrid().Page(ctx, owner, before, n)
		})
		if err != nil {
			return err
		}
		if !descends(got) {
			return errOrder
		}
		least, most := 0, 0
		for id := range c.alive {
			shown, must, may := slices.Contains(got, id), c.mustShow(owner, id), c.mayShow(owner, id)
			switch {
			case must && !shown:
				return fmt.Errorf("%w: %d of author %d for %d", errLost, id-c.base, c.author(id), owner)
			case shown && !may:
				return fmt.Errorf("%w: %d of author %d for %d", errBack, id-c.base, c.author(id), owner)
			}
			if must {
				least++
			}
			if may {
				most++
			}
		}
		u, err := c.hybrid().Unseen(ctx, owner)
		if err != nil {
			return err
		}
		if u.N > most || u.N < least && !u.More {
			return fmt.Errorf("%w: %+v, want %d to %d", errUnseen, u, least, most)
		}
	}
	return nil
}

// busy walks one feed while all else goes on.
func (c *crowd) busy(ctx context.Context) error {
	owner := owners[c.draw(len(owners))]
	clear(c.changed)
	var there []int64
	for id := range c.alive {
		if c.mustShow(owner, id) {
			there = append(there, id)
		}
	}
	between := func() error { return c.some(ctx, 3) }
	got, err := walkAtRandom(c.draw, between, func(before int64, n int) (feedcache.Page, error) {
		return c.hybrid().PageKeep(ctx, owner, before, n, func(_ context.Context, ids []int64) ([]int64, error) {
			return ids, between()
		})
	})
	switch {
	case err != nil:
		return err
	case !descends(got):
		return errOrder
	}
	for _, id := range there {
		if !c.changed[pair{owner, id}] && !slices.Contains(got, id) {
			return fmt.Errorf("%w in a walk: %d of author %d", errLost, id-c.base, c.author(id))
		}
	}
	return nil
}

func (c *crowd) live(ctx context.Context, steps int) error {
	for range steps {
		err := error(nil)
		switch c.draw(12) {
		case 0:
			err = c.check(ctx)
		case 1:
			err = c.busy(ctx)
		default:
			err = c.change(ctx)
		}
		if err != nil {
			return err
		}
	}
	return c.check(ctx)
}

// Nothing is lost between push and pull. The controls: the same crowd loses
// something where a skipped ID is not noted, and where readers never learn that
// an author is pulled.
func TestHybridModel(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		cfg   crowdConfig
		seeds uint64
		want  error
	}{
		{"LosesNothing", crowdConfig{}, 40, nil},
		{"FindsSkipsThatAreNotNoted", crowdConfig{forgetsSkip: true}, 60, errLost},
		{"FindsReadersThatDoNotLearn", crowdConfig{staleForever: true}, 60, errLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			rdb := testserver.Redis(t)
			err := search(tc.seeds, tc.want, func(draw func(int) int, seed int64) error {
				tc.cfg.prefix = fmt.Sprintf("%d-", seed)
				c, err := newCrowd(draw, rdb, tc.cfg)
				if err != nil {
					return err
				}
				return c.live(t.Context(), 80)
			})
			require.ErrorIs(t, err, tc.want)
		})
	}
}
