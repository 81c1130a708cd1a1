// Command idgen measures the generators of idgen beside other libraries', and
// next_id() beside the function that Instagram published, and prints how they
// compare with what we want. In the folder bench:
//
//	go run ./cmd/idgen [-rounds 7] [-benchtime 200ms] [-limit 2m] [-json FILE]
//
// It runs all benchmarks of identifiers once per round, so that a busy moment of
// the machine harms one round of all rows and not all rounds of one. A ratio is
// taken within a round, between rows that ran shortly after one another. The
// exit status says whether the measurement worked, not whether a bar was passed:
// timing on a shared machine is no test.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "idgen:", err)
		os.Exit(1)
	}
}

type config struct {
	rounds    int
	benchtime string
	limit     time.Duration
	json      string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var cfg config
	flags := flag.NewFlagSet("idgen", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&cfg.rounds, "rounds", 7, "how often each benchmark runs")
	flags.StringVar(&cfg.benchtime, "benchtime", "200ms", "how long, as go test -benchtime takes it")
	flags.DurationVar(&cfg.limit, "limit", 2*time.Minute, "no round begins that would end later, but the first")
	flags.StringVar(&cfg.json, "json", "", "write all figures to this file, too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if cfg.rounds < 1 || flags.NArg() > 0 {
		return fmt.Errorf("want 1 or more rounds and no argument, got %d and %q", cfg.rounds, flags.Args())
	}

	dir, err := os.MkdirTemp("", "idgen-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := report{Machine: machine(), Asked: cfg.rounds, Benchtime: cfg.benchtime, LoadBefore: load()}
	binary := filepath.Join(dir, "bench.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "github.com/shardgram/shardgram/bench")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the benchmarks: %w\n%s", err, out)
	}

	m := newMeasured()
	p := newProgress(stderr)
	defer p.clear()
	begin := time.Now()
	for round := range cfg.rounds {
		// All rounds take about the same time.
		if spent := time.Since(begin); round > 0 && spent+spent/time.Duration(round) > cfg.limit {
			break
		}
		err := measure(ctx, binary, cfg.benchtime, func(line string) error {
			row, err := m.add(line)
			if row != "" {
				p.show(fmt.Sprintf("round %d of %d: %s", round+1, cfg.rounds, row))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		r.Rounds++
	}
	p.clear()
	r.LoadAfter = load()
	r.fill(m)
	if cfg.json != "" {
		if err := r.writeJSON(cfg.json); err != nil {
			return err
		}
	}
	return r.write(stdout)
}

// measure runs the benchmarks of idgen once and hands over what they print, line by line.
func measure(ctx context.Context, binary, benchtime string, add func(line string) error) error {
	cmd := exec.CommandContext(ctx, binary, "-test.run=^$", "-test.bench=^Benchmark(IDGen|NextID)", "-test.benchtime="+benchtime, "-test.timeout=5m")
	var trouble strings.Builder
	cmd.Stderr = &trouble
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var wrong error
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Fprintln(&trouble, lines.Text())
		if wrong == nil {
			wrong = add(lines.Text())
		}
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return fmt.Errorf("%w\n%s", err, trouble.String())
	}
	return wrong
}

// progress is one line on a terminal; elsewhere it is nothing.
type progress struct{ w io.Writer }

func newProgress(w io.Writer) progress {
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			return progress{w}
		}
	}
	return progress{io.Discard}
}

func (p progress) show(text string) { fmt.Fprint(p.w, "\r\033[K"+text) }
func (p progress) clear()           { fmt.Fprint(p.w, "\r\033[K") }
