package feedcache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Followers returns at most n followers of an author, those above after in
// ascending order; fewer than n mean that there are no more. In SQL:
//
//	select follower from follower where author = $1 and follower > $2 order by follower limit $3
//
// Where feeds show their owner's own posts, each author follows themself: here,
// and in Routes.Pulled. A row of that in the table does both.
type Followers func(ctx context.Context, author, after int64, n int) ([]int64, error)

// A Job is a fan-out, or the part of one between two cursors. It travels through
// a [Queue] as JSON.
type Job struct {
	Author int64   `json:"author"`
	IDs    []int64 `json:"ids"`

	// Remove takes the IDs out of the feeds instead.
	Remove bool `json:"remove,omitempty"`

	// After and Until bound the followers: above After, and not above Until
	// unless that is 0. A job that is to resume has its cursor in After.
	After int64 `json:"after,omitempty"`
	Until int64 `json:"until,omitempty"`

	// At is when the IDs were made, for the histogram of the delay. Zero: not
	// counted.
	At time.Time `json:"at,omitzero"`
}

// A Queue keeps jobs until they are done, and has workers that call
// [Fanout.Run]: at least once, and again after an error. Any one that is a table
// in the database of the posts will do, such as River.
type Queue interface {
	// EnqueueTx adds jobs in the transaction that stores the IDs, so that both
	// or none of it happen. It is for who makes the IDs to call.
	EnqueueTx(ctx context.Context, tx pgx.Tx, jobs ...Job) error

	// Enqueue adds jobs that a running job hands on: [Fanout.Run] calls it, and
	// maybe again with the same jobs.
	Enqueue(ctx context.Context, jobs ...Job) error
}

// FanoutConfig says how jobs run. The zero FanoutConfig works.
type FanoutConfig struct {
	// PageSize is how many followers are read at once, and delivered to between
	// two savings of the cursor. While one page is delivered to, the next is
	// read; no more are in memory. Default: 5,000.
	PageSize int

	// Queue takes the chunks of large jobs. Default: none; a job is never split.
	Queue Queue

	// Chunk is how many followers one job delivers to: the rest of them it
	// hands on as jobs of that size, which other workers can run at the same
	// time. Default: 50,000.
	Chunk int

	// Outboxes get the IDs too, under their author. Default: there are none.
	Outboxes *Feeds

	// Routes are asked whether the followers get the IDs pushed. They need
	// Outboxes. Default: all IDs are pushed.
	Routes Routes

	// RouteAge is how old an answer of Routes.Pulled may be. Default: 10 s.
	RouteAge time.Duration

	// Progress is told after each page of followers, within Run. Default:
	// nobody is told.
	Progress func(Progress)
}

// Progress is how far a job has come.
type Progress struct {
	Job       Job      // After is where it began
	Cursor    int64    // the last follower that was delivered to
	Followers int64    // so far, in this run
	HandedOn  int64    // followers in jobs that were enqueued, in this run
	Delivery  Delivery // so far, in this run
	Took      time.Duration
}

// A Fanout delivers IDs to the feeds of all followers of their author. It is
// safe for concurrent use.
type Fanout struct {
	feeds     *Feeds
	followers Followers
	cfg       FanoutConfig
	jobs      atomic.Int64
	failed    atomic.Int64
	skipped   atomic.Int64
	delay     histogram
}

// NewFanout returns a fan-out to feeds.
func NewFanout(feeds *Feeds, followers Followers, cfg FanoutConfig) (*Fanout, error) {
	if cfg.PageSize == 0 {
		cfg.PageSize = 5000
	}
	if cfg.Chunk == 0 {
		cfg.Chunk = 50_000
	}
	if cfg.RouteAge == 0 {
		cfg.RouteAge = 10 * time.Second
	}
	switch {
	case feeds == nil:
		return nil, errors.New("feedcache: the feeds are nil")
	case followers == nil:
		return nil, errors.New("feedcache: the Followers are nil")
	case cfg.PageSize < 1:
		return nil, fmt.Errorf("feedcache: FanoutConfig.PageSize is %d: want at least 1", cfg.PageSize)
	case cfg.Chunk < cfg.PageSize:
		return nil, fmt.Errorf("feedcache: FanoutConfig.Chunk is %d: want at least the page size, %d", cfg.Chunk, cfg.PageSize)
	case cfg.RouteAge < 0:
		return nil, fmt.Errorf("feedcache: FanoutConfig.RouteAge is %v: want more than 0", cfg.RouteAge)
	case cfg.Routes != nil && cfg.Outboxes == nil:
		return nil, errors.New("feedcache: FanoutConfig.Routes without Outboxes: pulled IDs would be nowhere")
	}
	return &Fanout{feeds: feeds, followers: followers, cfg: cfg}, nil
}

// Run does a job. After each page of followers it calls save with the last of
// them: a cursor, to be stored with the job. Whoever runs the job again, after
// an error or a crash, sets [Job].After to it. All a job does can be done twice,
// so a cursor that was not stored costs time and nothing else. A nil save
// stores none.
//
// Run first changes the author's outbox, if there are any. Then, of IDs that are
// pushed, it asks the routes, and if the author's is [RoutePull] it is done; a
// removal goes to all followers, whose feeds may have the ID from before. Both
// happen only where After is 0.
func (o *Fanout) Run(ctx context.Context, job Job, save func(ctx context.Context, cursor int64) error) (Delivery, error) {
	d, err := o.start(ctx, job, save)
	o.jobs.Add(1)
	if err != nil {
		o.failed.Add(1)
		return d, fmt.Errorf("feedcache: fan-out of author %d: %w", job.Author, err)
	}
	return d, nil
}

func (o *Fanout) start(ctx context.Context, job Job, save func(context.Context, int64) error) (Delivery, error) {
	switch {
	case !valid(job.Author):
		return Delivery{}, fmt.Errorf("%w: author", ErrInvalid)
	case len(job.IDs) == 0 || slices.ContainsFunc(job.IDs, func(id int64) bool { return !valid(id) }):
		return Delivery{}, fmt.Errorf("%w: no IDs, or one out of range", ErrInvalid)
	case job.After < 0 || job.After == top || job.Until < 0 || job.Until == top || job.Until != 0 && job.Until < job.After:
		return Delivery{}, fmt.Errorf("%w: followers above %d up to %d", ErrInvalid, job.After, job.Until)
	}
	if job.After == 0 && o.cfg.Outboxes != nil {
		if _, err := o.cfg.Outboxes.change(ctx, slices.Values([]int64{job.Author}), job); err != nil {
			return Delivery{}, err
		}
	}
	// Removals go everywhere: there may be copies from before a switch.
	if job.After == 0 && o.cfg.Routes != nil && !job.Remove {
		skip, err := o.cfg.Routes.Skip(ctx, job.Author, slices.Min(job.IDs))
		if err != nil {
			return Delivery{}, fmt.Errorf("route: %w", err)
		}
		if skip {
			o.skipped.Add(1)
			return Delivery{}, nil
		}
	}
	return o.toFollowers(ctx, job, save)
}

// change is the Push or Remove that the job asks for.
func (f *Feeds) change(ctx context.Context, owners func(func(int64) bool), job Job) (Delivery, error) {
	if job.Remove {
		return f.Remove(ctx, owners, job.IDs...)
	}
	return f.Push(ctx, owners, job.IDs...)
}

// toFollowers delivers page by page, and hands on what is more than a chunk.
func (o *Fanout) toFollowers(ctx context.Context, job Job, save func(context.Context, int64) error) (Delivery, error) {
	reading, cancel := context.WithCancel(ctx)
	pages := o.read(reading, job)
	defer func() {
		cancel()
		for range pages { // until the reader has ended
		}
	}()
	p := Progress{Job: job, Cursor: job.After}
	begin := time.Now()
	for page := range pages {
		var err error
		switch {
		case page.err != nil:
			err = fmt.Errorf("followers after %d: %w", page.after, page.err)
		case o.cfg.Queue != nil && job.Until == 0 && p.Followers >= int64(o.cfg.Chunk):
			err = o.handOn(ctx, &p, page, pages)
		default:
			err = o.deliver(ctx, &p, page.owners)
		}
		if err == nil && save != nil {
			if err = save(ctx, p.Cursor); err != nil {
				err = fmt.Errorf("saving the cursor: %w", err)
			}
		}
		if err != nil {
			return p.Delivery, err
		}
		if p.Took = time.Since(begin); o.cfg.Progress != nil {
			o.cfg.Progress(p)
		}
	}
	return p.Delivery, ended(ctx)
}

// deliver delivers to one page of followers.
func (o *Fanout) deliver(ctx context.Context, p *Progress, owners []int64) error {
	d, err := o.feeds.change(ctx, slices.Values(owners), p.Job)
	p.Delivery.Warm += d.Warm
	p.Delivery.Cold += d.Cold
	if !p.Job.At.IsZero() {
		o.delay.add(time.Since(p.Job.At), d.Warm)
	}
	if err == nil {
		p.Followers += int64(len(owners))
		p.Cursor = owners[len(owners)-1]
	}
	return err
}

// handOn makes a chunk of the page and those that follow it, and enqueues it.
func (o *Fanout) handOn(ctx context.Context, p *Progress, page followerPage, pages <-chan followerPage) error {
	chunk, n := p.Job, 0
	for chunk.After = p.Cursor; ; {
		n += len(page.owners)
		chunk.Until = page.owners[len(page.owners)-1]
		next, more := followerPage{}, false
		if n < o.cfg.Chunk {
			next, more = <-pages
		}
		if !more {
			break
		}
		if page = next; page.err != nil {
			return fmt.Errorf("followers after %d: %w", page.after, page.err)
		}
	}
	if err := ended(ctx); err != nil {
		return err
	}
	if err := o.cfg.Queue.Enqueue(ctx, chunk); err != nil {
		return fmt.Errorf("handing on followers above %d up to %d: %w", chunk.After, chunk.Until, err)
	}
	p.HandedOn += int64(n)
	p.Cursor = chunk.Until
	return nil
}

// A followerPage has at least one owner, or an error.
type followerPage struct {
	after  int64
	owners []int64
	err    error
}

// read reads the followers of a job, one page ahead of who takes them.
func (o *Fanout) read(ctx context.Context, job Job) <-chan followerPage {
	pages := make(chan followerPage)
	go func() {
		defer close(pages)
		for after, more := job.After, true; more; {
			page := o.page(ctx, job, after)
			if len(page.owners) == 0 && page.err == nil {
				return
			}
			select {
			case pages <- page:
			case <-ctx.Done():
				return
			}
			more = page.err == nil && len(page.owners) == o.cfg.PageSize
			if more {
				after = page.owners[len(page.owners)-1]
			}
		}
	}()
	return pages
}

// page reads one page and checks what Followers promise, as a fan-out would
// miss somebody else, or never end.
func (o *Fanout) page(ctx context.Context, job Job, after int64) followerPage {
	owners, err := o.followers(ctx, job.Author, after, o.cfg.PageSize)
	if err == nil && len(owners) > o.cfg.PageSize {
		err = fmt.Errorf("got %d, want at most %d", len(owners), o.cfg.PageSize)
	}
	last := after
	for i, owner := range owners {
		if err == nil && (owner <= last || !valid(owner)) {
			err = fmt.Errorf("got one out of order at index %d", i)
		}
		last = owner
	}
	if err != nil {
		return followerPage{after: after, err: err}
	}
	if job.Until != 0 {
		end, _ := slices.BinarySearch(owners, job.Until+1)
		owners = owners[:end]
	}
	return followerPage{after: after, owners: owners}
}

// FanoutStats counts what a [Fanout] has done since NewFanout.
type FanoutStats struct {
	Jobs    int64 // that ran, in whole or in part
	Failed  int64 // of these, that ended with an error
	Skipped int64 // of these, that left the IDs to be pulled

	// Delay is the time from Job.At until a feed had the ID, of each delivery
	// to a warm feed.
	Delay Histogram
}

// Stats returns the counters.
func (o *Fanout) Stats() FanoutStats {
	return FanoutStats{Jobs: o.jobs.Load(), Failed: o.failed.Load(), Skipped: o.skipped.Load(), Delay: o.delay.snapshot()}
}
