package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shardgram/shardgram/hashkv"
	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// A result is what was measured of a layout.
type result struct {
	Name  string `json:"name"`
	Shape string `json:"shape"`
	Keys  int64  `json:"keys"`
	Limit string `json:"hash_max_listpack_entries,omitempty"`

	// Used is the growth of used_memory; of memcached, of its slabs and table.
	Used        int64   `json:"used_bytes"`
	RSS         int64   `json:"rss_bytes"` // growth
	RSSAgain    int64   `json:"rss_after_restart_bytes,omitempty"`
	BytesPerKey float64 `json:"bytes_per_key"`
	LoadSeconds float64 `json:"load_seconds"`
	LoadRate    float64 `json:"loads_per_second"`

	// What a server without persistence does not have is 0.
	RDB            int64   `json:"rdb_bytes,omitempty"`
	SaveSeconds    float64 `json:"save_seconds,omitempty"`
	RestartSeconds float64 `json:"restart_seconds,omitempty"`

	Get           reads   `json:"get"`
	Get8          reads   `json:"get_8_goroutines"`
	GetMulti      reads   `json:"get_multi_100"` // counts keys
	CommandMicros float64 `json:"command_us_per_get,omitempty"`
	ProcessMicros float64 `json:"server_cpu_us_per_get"` // with its system calls

	// All answers, in each phase and after the restart.
	Checked int64 `json:"checked"`
	Wrong   int64 `json:"wrong"`
	Missing int64 `json:"missing"`

	Stats *stats `json:"stats,omitempty"` // of a map of hashkv
}

type stats struct {
	Entries   int64          `json:"entries"`
	Buckets   int64          `json:"buckets"`
	Sampled   int            `json:"sampled"`
	Fill      hashkv.Fill    `json:"fill"`
	Encodings map[string]int `json:"encodings"`
}

// reads is how fast answers came.
type reads struct {
	Count int64   `json:"count"`
	Rate  float64 `json:"per_second"`
	P50   float64 `json:"p50_us,omitempty"`
	P99   float64 `json:"p99_us,omitempty"`
}

// A server is where a layout lies.
type server interface {
	// usage returns what the server takes at rest: of its own counting, and of
	// the system's.
	usage(ctx context.Context) (used, rss int64, err error)

	// resetCPU and cpu measure the time of the commands that read, where the
	// server tells it, and of the whole process.
	resetCPU(ctx context.Context) error
	cpu(ctx context.Context) (commands, process time.Duration, err error)

	// persist saves, ends and starts the server, if it can.
	persist(ctx context.Context, r *result, p *proof.Progress) error

	close()
}

// measure does everything with one layout, on a server of its own.
func measure(ctx context.Context, host *localserver.Host, l layout, span time.Duration, p *proof.Progress) (result, error) {
	r := result{Name: l.Name, Shape: l.Shape, Keys: l.Keys}
	start := startRedis
	if l.open == nil {
		start = startMemcached
	}
	srv, data, err := start(ctx, host, l, &r)
	if err != nil {
		return r, err
	}
	defer srv.close()
	used, rss, err := srv.usage(ctx)
	if err != nil {
		return r, err
	}

	p.Start("load")
	begin := time.Now()
	if err := data.load(ctx, l.Keys, func(done int64) { p.At(done, l.Keys) }); err != nil {
		return r, fmt.Errorf("load: %w", err)
	}
	r.LoadSeconds = time.Since(begin).Seconds()
	r.LoadRate = float64(l.Keys) / r.LoadSeconds
	p.Clear()

	if m, ok := data.(kv); ok {
		s, err := m.Stats(ctx, hashkv.StatsConfig{})
		if err != nil {
			return r, err
		}
		r.Stats = &stats{s.Entries, s.Buckets, s.Sampled, s.Fill, s.Encodings}
	}

	if err := readAll(ctx, srv, data, &r, span, p); err != nil {
		return r, fmt.Errorf("read: %w", err)
	}
	// Not right after the load: while Redis moves its keys to a larger table it
	// has two, and each command moves some.
	r.Used, r.RSS, err = srv.usage(ctx)
	if err != nil {
		return r, err
	}
	r.Used, r.RSS = r.Used-used, r.RSS-rss
	r.BytesPerKey = float64(r.Used) / float64(l.Keys)
	if err := srv.persist(ctx, &r, p); err != nil {
		return r, err
	}
	if r.RestartSeconds > 0 {
		_, again, err := srv.usage(ctx)
		if err != nil {
			return r, err
		}
		r.RSSAgain = again - rss
	}
	return r, nil
}

// together is the number of keys of a GetMulti, and of goroutines at a time.
const (
	multi    = 100
	together = 8
)

// readAll measures random reads of all kinds.
func readAll(ctx context.Context, srv server, data store, r *result, span time.Duration, p *proof.Progress) error {
	single := func() func(*tally) error {
		random := rand.New(rand.NewPCG(rand.Uint64(), 1))
		return func(t *tally) error {
			i := random.Int64N(r.Keys)
			value, err := data.get(ctx, i)
			t.check(i, value)
			return err
		}
	}
	if _, err := read(ctx, single, 1, span/10, p, "warm up", r); err != nil {
		return err
	}
	if err := srv.resetCPU(ctx); err != nil {
		return err
	}
	var err error
	if r.Get, err = read(ctx, single, 1, span, p, "get", r); err != nil {
		return err
	}
	commands, process, err := srv.cpu(ctx)
	if err != nil {
		return err
	}
	r.CommandMicros = float64(commands.Nanoseconds()) / 1e3 / float64(r.Get.Count)
	r.ProcessMicros = float64(process.Nanoseconds()) / 1e3 / float64(r.Get.Count)

	if r.Get8, err = read(ctx, single, together, span, p, "get by 8 goroutines", r); err != nil {
		return err
	}
	r.GetMulti, err = read(ctx, func() func(*tally) error {
		random := rand.New(rand.NewPCG(rand.Uint64(), 2))
		photos, owners := make([]int64, multi), make([]int64, multi)
		return func(t *tally) error {
			for j := range photos {
				photos[j] = random.Int64N(r.Keys)
			}
			if err := data.getMulti(ctx, photos, owners); err != nil {
				return err
			}
			for j, i := range photos {
				t.check(i, owners[j])
			}
			return nil
		}
	}, 1, span, p, "get 100 at a time", r)
	// Those were latencies of whole calls.
	r.GetMulti.P50, r.GetMulti.P99 = 0, 0
	r.Get8.P50, r.Get8.P99 = 0, 0
	return err
}

// A tally counts answers.
type tally struct {
	checked, wrong, missing int64
}

func (t *tally) check(i, value int64) {
	t.checked++
	switch value {
	case owner(i):
	case absent:
		t.missing++
	default:
		t.wrong++
	}
}

func (r *result) add(t tally) {
	r.Checked += t.checked
	r.Wrong += t.wrong
	r.Missing += t.missing
}

// read lets goroutines read for a time.
func read(ctx context.Context, reader func() func(*tally) error, goroutines int, span time.Duration, p *proof.Progress, phase string, r *result) (reads, error) {
	p.Start(phase)
	defer p.Clear()
	tallies := make([]tally, goroutines)
	errs := make([]error, goroutines)
	latencies := make([][]time.Duration, goroutines)
	var failed atomic.Bool
	var wg sync.WaitGroup
	begin := time.Now()
	for g := range goroutines {
		wg.Go(func() {
			next := reader()
			for last := begin; last.Sub(begin) < span && !failed.Load() && ctx.Err() == nil; {
				if err := next(&tallies[g]); err != nil {
					errs[g] = err
					failed.Store(true)
					return
				}
				now := time.Now()
				latencies[g] = append(latencies[g], now.Sub(last))
				last = now
				if g == 0 {
					p.At(0, 0)
				}
			}
		})
	}
	wg.Wait()
	spent := time.Since(begin)
	if ctx.Err() != nil {
		return reads{}, ctx.Err()
	}
	var sum reads
	for g, t := range tallies {
		if errs[g] != nil {
			return sum, errs[g]
		}
		sum.Count += t.checked
		r.add(t)
	}
	if sum.Count == 0 {
		return sum, fmt.Errorf("%s: nothing was read in %s", phase, spent)
	}
	all := slices.Sorted(slices.Values(slices.Concat(latencies...)))
	micros := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	sum.Rate = float64(sum.Count) / spent.Seconds()
	sum.P50, sum.P99 = micros(all[len(all)/2]), micros(all[len(all)*99/100])
	return sum, nil
}

// recheck reads a sample again, after the server was started anew.
func recheck(ctx context.Context, data store, r *result) error {
	const calls = 100
	photos, owners := make([]int64, multi), make([]int64, multi)
	var t tally
	for range calls {
		for j := range photos {
			photos[j] = rand.Int64N(r.Keys)
		}
		if err := data.getMulti(ctx, photos, owners); err != nil {
			return err
		}
		for j, i := range photos {
			t.check(i, owners[j])
		}
	}
	r.add(t)
	return nil
}
