package feedcache_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// benchServer is a Redis server with the warm feeds of one layout.
type benchServer struct {
	benchLayout
	rdb    *redis.Client
	owners []int64
	empty  float64 // bytes
	pushed int     // IDs that were made for pushes
	sent   *benchRecorder
}

// openBench makes the feeds and brings them to all states between two trims
// in equal numbers: this is how a server looks at any moment.
func openBench(b *testing.B, c benchCandidate) *benchServer {
	b.Helper()
	server, err := testserver.Host(b).Redis(b.Context(), c.name, localserver.RedisConfig{Settings: c.settings})
	require.NoError(b, err)
	s := &benchServer{
		rdb:  redis.NewClient(&redis.Options{Addr: server.Addr(), ReadTimeout: 20 * time.Second}),
		sent: &benchRecorder{},
	}
	b.Cleanup(func() { s.rdb.Close() })
	s.rdb.AddHook(s.sent)
	for owner := range int64(benchFeeds) {
		s.owners = append(s.owners, owner+1)
	}
	rand.Shuffle(len(s.owners), func(i, j int) { s.owners[i], s.owners[j] = s.owners[j], s.owners[i] })
	s.benchLayout, err = c.open(s.rdb)
	require.NoError(b, err)
	s.empty = s.used(b)
	require.NoError(b, s.fill(b.Context(), s.owners))
	for i := range c.cycle {
		require.NoError(b, s.pushTo(b.Context(), s.owners[:benchFeeds*i/c.cycle]))
	}
	return s
}

func (s *benchServer) pushTo(ctx context.Context, owners []int64) error {
	s.pushed++
	return s.push(ctx, owners, benchID(benchEntries+s.pushed))
}

// check reads the page of a feed that has had every push since openBench.
func (s *benchServer) check(b *testing.B, owner int64, pushes int) {
	b.Helper()
	ids, err := s.page(b.Context(), owner)
	require.NoError(b, err)
	var want []int64
	for i := range min(20, pushes) {
		want = append(want, benchID(benchEntries+s.pushed-i))
	}
	require.Len(b, ids, 20)
	require.Equal(b, want, ids[:len(want)])
}

func (s *benchServer) info(b *testing.B, section string) map[string]string {
	b.Helper()
	text, err := s.rdb.Info(b.Context(), section).Result()
	require.NoError(b, err)
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	return fields
}

func benchNumber(b *testing.B, text string) float64 {
	b.Helper()
	x, err := strconv.ParseFloat(text, 64)
	require.NoError(b, err)
	return x
}

// used leaves out the buffers of connections, which come and go.
func (s *benchServer) used(b *testing.B) float64 {
	b.Helper()
	fields := s.info(b, "memory")
	return benchNumber(b, fields["used_memory"]) - benchNumber(b, fields["mem_clients_normal"])
}

// perEntry is the bytes of everything that a feed takes, per entry it keeps.
func (s *benchServer) perEntry(b *testing.B) float64 {
	b.Helper()
	return (s.used(b) - s.empty) / benchFeeds / benchEntries
}

// cpu is the time of the whole server, in microseconds.
func (s *benchServer) cpu(b *testing.B) float64 {
	b.Helper()
	fields := s.info(b, "cpu")
	return 1e6 * (benchNumber(b, fields["used_cpu_user"]) + benchNumber(b, fields["used_cpu_sys"]))
}

// commands is how long the server has run those commands, in microseconds,
// since CONFIG RESETSTAT.
func (s *benchServer) commands(b *testing.B, names map[string]bool) float64 {
	b.Helper()
	var sum float64
	stats := s.info(b, "commandstats")
	for name := range names {
		for field := range strings.SplitSeq(stats["cmdstat_"+name], ",") {
			if usec, ok := strings.CutPrefix(field, "usec="); ok {
				sum += benchNumber(b, usec)
			}
		}
	}
	return sum
}

// A benchRecorder counts what a client sends.
type benchRecorder struct {
	mu       sync.Mutex
	trips    int
	commands [][]any
}

func (r *benchRecorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *benchRecorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		r.note(cmd)
		return next(ctx, cmd)
	}
}

func (r *benchRecorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		r.note(cmds...)
		return next(ctx, cmds)
	}
}

func (r *benchRecorder) note(cmds ...redis.Cmder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trips++
	if r.commands == nil {
		return
	}
	for _, cmd := range cmds {
		r.commands = append(r.commands, cmd.Args())
	}
}

// take returns the round trips since the last call.
func (r *benchRecorder) take() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	trips := r.trips
	r.trips = 0
	return trips
}

// during returns the round trips that run takes, and the commands in them.
func (r *benchRecorder) during(run func()) (trips int, commands [][]any) {
	r.mu.Lock()
	r.trips, r.commands = 0, make([][]any, 0, benchFeeds)
	r.mu.Unlock()
	run()
	r.mu.Lock()
	defer r.mu.Unlock()
	commands, r.commands = r.commands, nil
	return r.trips, commands
}

// BenchmarkPush delivers an ID to 2,000 warm feeds of 800 a hundred times per
// operation, with the trims and compactions that this makes necessary.
func BenchmarkPush(b *testing.B) {
	const rounds = 100
	for _, c := range benchCandidates {
		b.Run("layout="+c.name, func(b *testing.B) {
			s := openBench(b, c)
			var bytes []float64
			cpu, done := s.cpu(b), 0
			for b.Loop() {
				for range rounds {
					if done++; done%(rounds/4) == 0 {
						bytes = append(bytes, s.perEntry(b))
					}
					if err := s.pushTo(b.Context(), s.owners); err != nil {
						b.Fatal(err)
					}
				}
			}
			cpu = s.cpu(b) - cpu
			for _, owner := range s.owners[:100] {
				s.check(b, owner, done)
			}
			deliveries := float64(done * benchFeeds)
			b.ReportMetric(deliveries/b.Elapsed().Seconds(), "deliveries/s")
			b.ReportMetric(cpu/deliveries, "server-us/delivery")
			b.ReportMetric(benchMean(bytes), "bytes/entry")
			b.ReportMetric(0, "ns/op") // an operation is as long as we make it
		})
	}
}

func benchMean(xs []float64) float64 {
	var sum float64
	for _, x := range xs {
		sum += x
	}
	return sum / float64(len(xs))
}

// BenchmarkPage reads the newest 20 IDs of random feeds. What it takes of the
// server is measured apart: the commands of one page of every feed are sent
// again in pipelines, which leaves out what a round trip costs.
func BenchmarkPage(b *testing.B) {
	for _, c := range benchCandidates {
		b.Run("layout="+c.name, func(b *testing.B) {
			s := openBench(b, c)
			benchPages(b, s, s.page)
		})
	}
	ours := benchCandidates[len(benchCandidates)-1]
	b.Run("layout=feedcache/deep", func(b *testing.B) {
		s := openBench(b, ours)
		feeds := s.benchLayout.(benchFeedcache)
		benchPages(b, s, func(ctx context.Context, owner int64) ([]int64, error) {
			page, err := feeds.Page(ctx, owner, benchID(benchEntries/2), 20)
			return page.IDs, err
		})
	})
	b.Run("layout=feedcache/cold", func(b *testing.B) {
		s := openBench(b, ours)
		feeds := s.benchLayout.(benchFeedcache)
		trips := 0
		s.sent.take()
		for i := 0; b.Loop(); i++ {
			if i%benchFeeds == 0 {
				b.StopTimer()
				trips += s.sent.take()
				require.NoError(b, feeds.Drop(b.Context(), s.owners...))
				s.sent.take()
				b.StartTimer()
			}
			if page, err := feeds.Page(b.Context(), s.owners[i%benchFeeds], 0, 20); err != nil || len(page.IDs) != 20 {
				b.Fatal(page, err)
			}
		}
		b.ReportMetric(float64(trips+s.sent.take())/float64(b.N), "roundtrips/page")
	})
}

func benchPages(b *testing.B, s *benchServer, page func(ctx context.Context, owner int64) ([]int64, error)) {
	const times = 5
	trips, commands := s.sent.during(func() {
		for _, owner := range s.owners {
			ids, err := page(b.Context(), owner)
			require.NoError(b, err)
			require.Len(b, ids, 20)
		}
	})
	names := map[string]bool{}
	for _, args := range commands {
		names[args[0].(string)] = true
	}
	require.NoError(b, s.rdb.ConfigResetStat(b.Context()).Err())
	cpu := s.cpu(b)
	for range times {
		for window := range slices.Chunk(commands, benchWindow) {
			_, err := s.rdb.Pipelined(b.Context(), func(pipe redis.Pipeliner) error {
				for _, args := range window {
					pipe.Do(b.Context(), args...)
				}
				return nil
			})
			require.NoError(b, err)
		}
	}
	cpu = s.cpu(b) - cpu
	micros := s.commands(b, names)
	bytes := benchNumber(b, s.info(b, "stats")["total_net_output_bytes"])
	b.ReportAllocs()
	for b.Loop() {
		if ids, err := page(b.Context(), s.owners[rand.IntN(benchFeeds)]); err != nil || len(ids) != 20 {
			b.Fatal(ids, err)
		}
	}
	b.ReportMetric(micros/times/benchFeeds, "cmd-us/page")
	b.ReportMetric(cpu/times/benchFeeds, "cpu-us/page")
	b.ReportMetric(bytes/times/benchFeeds, "wire-bytes/page")
	b.ReportMetric(float64(trips)/benchFeeds, "roundtrips/page")
}

// BenchmarkByTurns compares pushes with those of the baseline, the usual sorted
// set: each in turn for 100 ms or more, so that a busy moment of the machine
// harms one round and not one layout. The metrics are medians of the rounds'
// ratios: of the throughput, and of what a second of the server's processor
// does. -benchtime=50x gives them 50 rounds. Client and server share the cores
// of one machine, so a busy machine hides what the server saves.
func BenchmarkByTurns(b *testing.B) {
	const slice = 100 * time.Millisecond
	servers := []*benchServer{
		openBench(b, benchCandidates[0]),
		openBench(b, benchCandidates[len(benchCandidates)-1]),
	}
	var throughput, cpu []float64
	for round := 0; b.Loop(); round++ {
		var perSecond, perMicro [2]float64
		for turn := range servers {
			at := (turn + round) % len(servers)
			s := servers[at]
			used, begin, done := s.cpu(b), time.Now(), 0.0
			for time.Since(begin) < slice {
				if err := s.pushTo(b.Context(), s.owners); err != nil {
					b.Fatal(err)
				}
				done += benchFeeds
			}
			perSecond[at] = done / time.Since(begin).Seconds()
			perMicro[at] = done / (s.cpu(b) - used)
		}
		throughput = append(throughput, perSecond[1]/perSecond[0])
		cpu = append(cpu, perMicro[1]/perMicro[0])
	}
	b.ReportMetric(0, "ns/op") // a round is as long as we make it
	b.ReportMetric(benchMedian(throughput), "x-baseline")
	b.ReportMetric(benchMedian(cpu), "x-baseline-cpu")
}

func benchMedian(xs []float64) float64 {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

// BenchmarkPageUnderFanout is the time that a page of 20 takes while pushes to
// the same server, from the same process, run as fast as they can, and while
// none run. One reader that asks 200 times a second is a server far from its
// limits; four that ask again at once make it as busy as they can.
func BenchmarkPageUnderFanout(b *testing.B) {
	for _, c := range []benchCandidate{benchCandidates[0], benchCandidates[len(benchCandidates)-1]} {
		b.Run("layout="+c.name, func(b *testing.B) {
			s := openBench(b, c)
			for _, fanOut := range []bool{false, true} {
				b.Run(fmt.Sprintf("fanout=%t/readers=200-per-second", fanOut), func(b *testing.B) {
					benchLatency(b, s, fanOut, readSteadily)
				})
				b.Run(fmt.Sprintf("fanout=%t/readers=4-at-once", fanOut), func(b *testing.B) {
					benchLatency(b, s, fanOut, readAtOnce)
				})
			}
		})
	}
}

func benchLatency(b *testing.B, s *benchServer, fanOut bool, read func(*testing.B, *benchServer) []time.Duration) {
	stop := func() float64 { return 0 }
	if fanOut {
		stop = s.fanOut(b)
	}
	took := read(b, s)
	b.ReportMetric(stop(), "deliveries/s")
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1e6, "p50-us")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1e6, "p99-us")
}

// fanOut pushes until the function it returns is called, which tells the rate.
func (s *benchServer) fanOut(b *testing.B) (stop func() float64) {
	ctx, cancel := context.WithCancel(b.Context())
	rate := make(chan float64, 1)
	var failed error
	go func() {
		begin, done := time.Now(), 0
		for ctx.Err() == nil {
			if err := s.pushTo(b.Context(), s.owners); err != nil {
				failed = err
				break
			}
			done += benchFeeds
		}
		rate <- float64(done) / time.Since(begin).Seconds()
	}()
	return sync.OnceValue(func() float64 {
		cancel()
		r := <-rate
		require.NoError(b, failed)
		return r
	})
}

// timePage reads a random feed.
func (s *benchServer) timePage(ctx context.Context, since time.Time) (time.Duration, error) {
	ids, err := s.page(ctx, s.owners[rand.IntN(benchFeeds)])
	if err == nil && len(ids) != 20 {
		err = fmt.Errorf("a page has %d IDs", len(ids))
	}
	return time.Since(since), err
}

// readSteadily measures from when a page was due, so that one that is slow
// counts for those that had to wait for it too.
func readSteadily(b *testing.B, s *benchServer) []time.Duration {
	const pause = 5 * time.Millisecond
	var took []time.Duration
	due := time.Now()
	for b.Loop() {
		since := due
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
			since = time.Now() // how late a sleep ends is not the server's doing
		}
		due = due.Add(pause)
		d, err := s.timePage(b.Context(), since)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, d)
	}
	return took
}

func readAtOnce(b *testing.B, s *benchServer) []time.Duration {
	const readers, pages = 4, 50
	var (
		mu   sync.Mutex
		took []time.Duration
		errs []error
	)
	for b.Loop() {
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				for range pages {
					d, err := s.timePage(b.Context(), time.Now())
					mu.Lock()
					took = append(took, d)
					if err != nil {
						errs = append(errs, err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.Empty(b, errs)
	}
	return took
}
