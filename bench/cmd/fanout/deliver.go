package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/shardgram/shardgram/feedcache"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// A delivery is what was measured of one post.
type delivery struct {
	Name string `json:"name"`

	// Seconds are from the start of the first worker, the process, to the end
	// of the last.
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"deliveries_per_second"` // feeds by Seconds

	// Pushes are those that Redis counted; those above one for each feed were
	// repeated.
	Pushes   int64 `json:"pushes"`
	Repeated int64 `json:"repeated"`

	Kill *kill `json:"kill,omitempty"`

	// What the worker and Redis spent, by delivery.
	WorkerMicros float64 `json:"worker_cpu_us"`
	RedisMicros  float64 `json:"redis_cpu_us"`

	// RSS of the worker: when a fifth of the feeds had the post, at its most,
	// and the last that was seen.
	FifthRSS int64 `json:"rss_at_a_fifth_bytes"`
	MostRSS  int64 `json:"rss_at_most_bytes"`
	LastRSS  int64 `json:"rss_at_the_end_bytes"`

	Checked int64 `json:"feeds_checked"`
	Wrong   int64 `json:"feeds_wrong"`

	Samples []sample `json:"samples"`
}

// A kill is how far the first worker had come.
type kill struct {
	Seconds float64 `json:"seconds"`
	Pushes  int64   `json:"pushes"`
	Saved   int64   `json:"followers_before_cursor"`
	Pause   float64 `json:"seconds_to_next_push"`
}

// A sample is a moment: what Redis has counted, and the worker's memory.
type sample struct {
	Worker  int     `json:"worker"`
	Seconds float64 `json:"seconds"`
	Pushes  int64   `json:"pushes"`
	RSS     int64   `json:"rss_bytes"`
}

// deliver makes a post and has it delivered by one worker, or by two of which
// the first is killed at half.
func (s *scene) deliver(ctx context.Context, name string, killed bool, p *proof.Progress) (delivery, error) {
	r := delivery{Name: name}
	s.posts = append(s.posts, post(len(s.posts)))
	s.jobs++
	job := feedcache.Job{Author: author, IDs: s.posts[len(s.posts)-1:]}
	if _, err := s.conn.Exec(ctx, `insert into job (id, body) values ($1, $2)`, s.jobs, job); err != nil {
		return r, err
	}
	if err := s.rdb.ConfigResetStat(ctx).Err(); err != nil {
		return r, err
	}
	before, err := s.processTime(ctx)
	if err != nil {
		return r, err
	}

	p.Start("deliver")
	begin := time.Now()
	if killed {
		if err := s.half(ctx, &r, begin, p); err != nil {
			return r, err
		}
	}
	w, err := s.start(ctx, &r)
	if err != nil {
		return r, err
	}
	if err := s.watch(ctx, w, &r, begin, 0, p); err != nil {
		return r, err
	}
	r.Seconds = time.Since(begin).Seconds()
	p.Clear()
	if err := w.outcome(); err != nil {
		return r, err
	}

	after, err := s.processTime(ctx)
	if err != nil {
		return r, err
	}
	r.RedisMicros = float64((after - before).Microseconds()) / float64(s.cfg.n)
	r.WorkerMicros /= float64(s.cfg.n)
	if r.Pushes, err = s.pushes(ctx); err != nil {
		return r, err
	}
	r.Repeated = r.Pushes - s.cfg.n
	r.Rate = float64(s.cfg.n) / r.Seconds
	r.conclude(s.cfg.n)
	return r, s.check(ctx, &r, p)
}

// half has a worker deliver to half of the feeds, and kills it.
func (s *scene) half(ctx context.Context, r *delivery, begin time.Time, p *proof.Progress) error {
	w, err := s.start(ctx, r)
	if err != nil {
		return err
	}
	if err := s.watch(ctx, w, r, begin, s.cfg.n/2, p); err != nil {
		return err
	}
	if w.cmd.ProcessState.Success() {
		return errEnded
	}
	r.Kill = &kill{Seconds: time.Since(begin).Seconds()}
	if r.Kill.Pushes, err = s.pushes(ctx); err != nil {
		return err
	}
	var cursor int64
	if err := s.conn.QueryRow(ctx, `select after from job where id = $1`, s.jobs).Scan(&cursor); err != nil {
		return err
	}
	r.Kill.Saved = int64(sort.Search(int(s.cfg.n), func(i int) bool { return follower(int64(i)) > cursor }))
	return nil
}

// conclude draws from the samples what the report says of them.
func (d *delivery) conclude(n int64) {
	for _, at := range d.Samples {
		if d.FifthRSS == 0 && at.Pushes >= n/5 {
			d.FifthRSS = at.RSS
		}
		if d.Kill != nil && d.Kill.Pause == 0 && at.Worker == 2 && at.Pushes > d.Kill.Pushes {
			d.Kill.Pause = at.Seconds - d.Kill.Seconds
		}
		d.MostRSS, d.LastRSS = max(d.MostRSS, at.RSS), at.RSS
	}
}

// A worker is a process that does the job.
type worker struct {
	number int
	cmd    *exec.Cmd
	out    bytes.Buffer
	errs   bytes.Buffer
	ended  chan error
}

func (s *scene) start(ctx context.Context, r *delivery) (*worker, error) {
	o := s.orders
	o.Job = s.jobs
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &worker{number: 1, ended: make(chan error, 1)}
	if r.Kill != nil {
		w.number = 2
	}
	w.cmd = exec.CommandContext(ctx, program)
	w.cmd.Env = append(os.Environ(), ordersVariable+"="+string(text))
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.errs
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { w.ended <- w.cmd.Wait() }()
	return w, nil
}

// watch takes samples until the worker has ended, which is killed when Redis has
// counted so many pushes, unless that is 0.
func (s *scene) watch(ctx context.Context, w *worker, r *delivery, begin time.Time, most int64, p *proof.Progress) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var failed error // ours, with which the worker ends too
	for {
		select {
		case err := <-w.ended:
			state := w.cmd.ProcessState
			r.WorkerMicros += float64((state.UserTime() + state.SystemTime()).Microseconds())
			if killed := !state.Exited(); killed && most > 0 && failed == nil && ctx.Err() == nil {
				return nil
			}
			if err != nil {
				err = fmt.Errorf("worker: %w: %s", err, strings.TrimSpace(w.errs.String()))
			}
			return errors.Join(ctx.Err(), failed, err)
		case <-tick.C:
		}
		rss, err := proof.Kilobytes("/proc/"+strconv.Itoa(w.cmd.Process.Pid)+"/status", "VmRSS")
		if err != nil {
			continue // it has just ended
		}
		pushes, err := s.pushes(ctx)
		if err != nil && failed == nil {
			failed = err
		}
		if failed != nil || most > 0 && pushes >= most {
			w.cmd.Process.Kill()
		}
		r.Samples = append(r.Samples, sample{w.number, time.Since(begin).Seconds(), pushes, rss})
		p.At(min(pushes, s.cfg.n), s.cfg.n)
	}
}

// outcome fails if a feed was cold.
func (w *worker) outcome() error {
	var o outcome
	if err := json.Unmarshal(w.out.Bytes(), &o); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	if o.Cold > 0 {
		return fmt.Errorf("%d feeds were cold", o.Cold)
	}
	return nil
}

// pushes returns how often Redis has appended to a feed since the counters were
// reset.
func (s *scene) pushes(ctx context.Context) (int64, error) {
	fields, err := s.info(ctx, "commandstats")
	if err != nil {
		return 0, err
	}
	calls, _, _ := strings.Cut(strings.TrimPrefix(fields["cmdstat_rpushx"], "calls="), ",")
	if calls == "" {
		return 0, nil // none yet
	}
	return strconv.ParseInt(calls, 10, 64)
}

// processTime returns the processor time of Redis.
func (s *scene) processTime(ctx context.Context) (time.Duration, error) {
	fields, err := s.info(ctx, "cpu")
	if err != nil {
		return 0, err
	}
	user, err1 := strconv.ParseFloat(fields["used_cpu_user"], 64)
	sys, err2 := strconv.ParseFloat(fields["used_cpu_sys"], 64)
	return time.Duration((user + sys) * float64(time.Second)), errors.Join(err1, err2)
}
