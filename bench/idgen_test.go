package bench_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bwmarrin/snowflake"
	gofrs "github.com/gofrs/uuid/v5"
	google "github.com/google/uuid"
	"github.com/oklog/ulid/v2"
	"github.com/rs/xid"
	"github.com/segmentio/ksuid"
	"github.com/shardgram/shardgram/idgen"
	"github.com/sony/sonyflake"
	"github.com/stretchr/testify/require"
)

// A maker returns a function that makes one ID. It is new for each measurement,
// so that none begins with what another one has used up.
type maker struct {
	name string
	make func(testing.TB) func() error
}

// wide has 4,194,304 IDs per millisecond, so that nobody waits.
var wide = idgen.Layout{TimeBits: 41, ShardBits: 1, SequenceBits: 22, Epoch: idgen.Default.Epoch}

// unthrottled are measured for what their code costs. The first three are floors:
// time.Now for those that read the wall clock for every ID, time.Since for those
// that only read the monotonic one, which are shardgram (within a millisecond)
// and snowflake, and Since+Add for those that also keep one word for all
// goroutines, whose cache line then goes from core to core. sonyflake is missing: its 256 IDs per 10 ms are constants.
var unthrottled = []maker{
	{"time.Now", func(testing.TB) func() error {
		return func() error { _ = time.Now(); return nil }
	}},
	{"time.Since", func(testing.TB) func() error {
		begin := time.Now()
		return func() error { _ = time.Since(begin); return nil }
	}},
	{"Since+Add", func(testing.TB) func() error {
		begin := time.Now()
		var n atomic.Int64
		return func() error { _ = time.Since(begin); n.Add(1); return nil }
	}},
	{"shardgram", func(t testing.TB) func() error { return shardgram(t, idgen.Config{Layout: wide}) }},
	{"snowflake", func(t testing.TB) func() error { return bwmarrin(t, 1, 21) }},
	{"xid", func(testing.TB) func() error {
		return func() error { _ = xid.New(); return nil }
	}},
	{"ulid", func(testing.TB) func() error {
		return func() error { _ = ulid.Make(); return nil }
	}},
	{"ksuid", func(testing.TB) func() error {
		return func() error { _, err := ksuid.NewRandom(); return err }
	}},
	{"google-v7", func(testing.TB) func() error {
		return func() error { _, err := google.NewV7(); return err }
	}},
	{"gofrs-v7", func(testing.TB) func() error {
		return func() error { _, err := gofrs.NewV7(); return err }
	}},
}

// throttled are measured as they come. Each waits when the IDs of its time unit
// are used up, so ns/id is the capacity of the format and nothing else: 1,024
// per ms are 976.6 ns, 4,096 per ms are 244.1 ns, 256 per 10 ms are 39,062 ns.
// How they wait is in %core.
var throttled = []maker{
	{"shardgram", func(t testing.TB) func() error { return shardgram(t, idgen.Config{}) }},
	{"snowflake", func(t testing.TB) func() error { return bwmarrin(t, 10, 12) }},
	{"sonyflake", func(t testing.TB) func() error {
		// Without a number it looks for a private network address.
		s := sonyflake.NewSonyflake(sonyflake.Settings{MachineID: func() (uint16, error) { return 1, nil }})
		require.NotNil(t, s)
		return func() error { _, err := s.NextID(); return err }
	}},
}

func shardgram(t testing.TB, cfg idgen.Config) func() error {
	g, err := idgen.New(1, cfg)
	require.NoError(t, err)
	ctx := context.Background()
	return func() error { _, err := g.Next(ctx); return err }
}

// bwmarrin changes the package's variables, which a node reads when it is made.
func bwmarrin(t testing.TB, nodeBits, stepBits uint8) func() error {
	defer func(node, step uint8) { snowflake.NodeBits, snowflake.StepBits = node, step }(snowflake.NodeBits, snowflake.StepBits)
	snowflake.NodeBits, snowflake.StepBits = nodeBits, stepBits
	n, err := snowflake.NewNode(1)
	require.NoError(t, err)
	return func() error { _ = n.Generate(); return nil }
}

// BenchmarkIDGen measures generators in this process. The group says what a row
// shows:
//
//	cost                the code, one goroutine; the format has room for all
//	cost-parallel       the same with GOMAXPROCS goroutines
//	throttled           the format's limit, and what waiting for it costs (%core)
//	throttled-parallel  the same with GOMAXPROCS goroutines
//	shards=k            a set of k shards: k × 1,024 IDs per ms, or what the code can
//	batch=n             the code of Fill, n IDs at a time
//
// A call through a function value, about 2 ns, is in every row that has a name
// of a library or of a clock.
func BenchmarkIDGen(b *testing.B) {
	for _, m := range unthrottled {
		b.Run("cost/"+m.name, func(b *testing.B) { serial(b, m) })
	}
	for _, m := range unthrottled {
		b.Run("cost-parallel/"+m.name, func(b *testing.B) { parallel(b, m) })
	}
	for _, m := range throttled {
		b.Run("throttled/"+m.name, func(b *testing.B) { serial(b, m) })
	}
	for _, m := range throttled {
		b.Run("throttled-parallel/"+m.name, func(b *testing.B) { parallel(b, m) })
	}
	for _, k := range []int{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("shards=%d", k), func(b *testing.B) { shards(b, k) })
	}
	for _, n := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) { batch(b, n) })
	}
}

func serial(b *testing.B, m maker) {
	next := start(b, m)
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		if err := next(); err != nil {
			b.Fatal(err)
		}
	}
	report(b, 1)
	reportCore(b, begin)
}

func parallel(b *testing.B, m maker) {
	next := start(b, m)
	b.ReportAllocs()
	b.ResetTimer()
	begin := cpu(b)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := next(); err != nil {
				b.Error(err)
				return
			}
		}
	})
	report(b, 1)
	reportCore(b, begin)
}

// start makes a generator and runs it for two time units of the slowest, until
// it has used up what was there at the beginning.
func start(b *testing.B, m maker) func() error {
	next := m.make(b)
	for until := time.Now().Add(20 * time.Millisecond); time.Now().Before(until); {
		require.NoError(b, next())
	}
	return next
}

func shards(b *testing.B, k int) {
	var generators []*idgen.Generator
	for shard := range k {
		g, err := idgen.New(shard, idgen.Config{})
		require.NoError(b, err)
		generators = append(generators, g)
	}
	set, err := idgen.NewSet(generators...)
	require.NoError(b, err)
	ctx := context.Background()
	for range k * 1024 {
		_, err := set.Next(ctx)
		require.NoError(b, err)
	}
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		if _, err := set.Next(ctx); err != nil {
			b.Fatal(err)
		}
	}
	report(b, 1)
	reportCore(b, begin)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ids/s")
}

func batch(b *testing.B, n int) {
	g, err := idgen.New(1, idgen.Config{Layout: wide})
	require.NoError(b, err)
	ctx := context.Background()
	ids := make([]idgen.ID, n)
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		if _, err := g.Fill(ctx, ids); err != nil {
			b.Fatal(err)
		}
	}
	report(b, n)
	reportCore(b, begin)
}
