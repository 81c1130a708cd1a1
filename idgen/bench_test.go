//go:build unix

package idgen_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/shardgram/shardgram/idgen"
)

// open has so many IDs per millisecond, 4,194,304, that nobody waits: it shows
// what the code costs.
var open = idgen.Layout{TimeBits: 41, ShardBits: 1, SequenceBits: 22, Epoch: idgen.Default.Epoch}

// BenchmarkNow is the floor: Next reads the clock once.
func BenchmarkNow(b *testing.B) {
	for b.Loop() {
		_ = time.Now()
	}
}

func BenchmarkNowParallel(b *testing.B) {
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_ = time.Now()
		}
	})
}

func BenchmarkNext(b *testing.B) {
	g := newGenerator(b, 1, idgen.Config{Layout: open})
	b.ReportAllocs()
	for b.Loop() {
		_, _ = g.Next(context.Background())
	}
}

func BenchmarkNextParallel(b *testing.B) {
	g := newGenerator(b, 1, idgen.Config{Layout: open})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			_, _ = g.Next(context.Background())
		}
	})
}

// BenchmarkFill100 makes 100 IDs per operation; ns/id is what one costs.
func BenchmarkFill100(b *testing.B) {
	g := newGenerator(b, 1, idgen.Config{Layout: open})
	var ids [100]idgen.ID
	b.ReportAllocs()
	for b.Loop() {
		_, _ = g.Fill(context.Background(), ids[:])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ids)), "ns/id")
}

// BenchmarkSustained drains one shard of the default layout: 1,024 IDs per
// millisecond are 976.6 ns each, however fast the code is. cpu/op is what the
// process works meanwhile.
func BenchmarkSustained(b *testing.B) {
	g := newGenerator(b, 1, idgen.Config{})
	b.ReportAllocs()
	begin := cpu(b)
	for b.Loop() {
		_, _ = g.Next(context.Background())
	}
	b.ReportMetric(100*float64(cpu(b)-begin)/float64(b.Elapsed()), "%core")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
