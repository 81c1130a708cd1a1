package bench_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres) }

// report gives a row its one figure, nanoseconds per ID, in place of ns/op: an
// operation makes one ID in some rows and thousands in others.
func report(b *testing.B, idsPerOp int) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(idsPerOp), "ns/id")
}

// reportCore adds how much of one core the process has worked since begin.
func reportCore(b *testing.B, begin time.Duration) {
	b.Helper()
	b.ReportMetric(100*float64(cpu(b)-begin)/float64(b.Elapsed()), "%core")
}

// cpu returns the time that all threads of this process have worked.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
