// Command fanout measures how one post gets to the feeds of a million followers,
// and what happens when the worker that brings it is killed on the way. It
// writes a report with a chart. In the folder bench:
//
//	go run ./cmd/fanout [-n 1000000] [-entries 30] [-page 5000] [-out ../docs]
//	    [-dir FOLDER] [-json FILE]
//
// The followers are in a table in PostgreSQL, their feeds in Redis, all warm. A
// worker, a process of its own, runs feedcache.Fanout and keeps its cursor in
// PostgreSQL. One post is delivered without trouble; a second one by a worker
// that gets a SIGKILL at half of the feeds, and one that takes over. After each,
// every feed is read. A feed that is not as it should be is an error, a bar that
// was missed is not: timing on a shared machine is no test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if orders := os.Getenv(ordersVariable); orders != "" {
		err = work(ctx, orders)
	} else {
		err = run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fanout:", err)
		os.Exit(1)
	}
}

type config struct {
	n       int64
	entries int
	page    int
	out     string
	dir     string
	json    string
	command string // to repeat the run
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg := config{command: strings.Join(append([]string{"go run ./cmd/fanout"}, args...), " ")}
	flags := flag.NewFlagSet("fanout", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Int64Var(&cfg.n, "n", 1_000_000, "how many followers the author has")
	flags.IntVar(&cfg.entries, "entries", 30, "how many entries each feed has before")
	flags.IntVar(&cfg.page, "page", 5000, "how many followers are read at once")
	flags.StringVar(&cfg.out, "out", "../docs", "the folder for the report and its charts")
	flags.StringVar(&cfg.dir, "dir", "/var/tmp", "the folder for the data of the servers, on a disk")
	flags.StringVar(&cfg.json, "json", "", "write all figures to this file, too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("want no argument, got %q", flags.Args())
	case cfg.n < 1000 || cfg.n > 100_000_000:
		return fmt.Errorf("-n is %d: want 1000 to 100000000", cfg.n)
	case cfg.entries < 1 || cfg.entries > 700:
		return fmt.Errorf("-entries is %d: want 1 to 700", cfg.entries)
	case cfg.page < 1 || int64(cfg.page) > cfg.n/8:
		return fmt.Errorf("-page is %d: want 1 to an eighth of -n, so that there is something to resume", cfg.page)
	}
	have, err := proof.Kilobytes("/proc/meminfo", "MemAvailable")
	if err != nil {
		return err
	}
	if need := cfg.memory(); have < need {
		return fmt.Errorf("the run takes %s of memory, and %s are available: choose a smaller -n", proof.GB(need), proof.GB(have))
	}
	return prove(ctx, cfg, stdout, proof.NewProgress(stderr))
}

// memory is what the feeds take, with room for the rest.
func (cfg config) memory() int64 { return cfg.n*int64(400+12*cfg.entries) + 512<<20 }

// prove delivers both posts and writes the report.
func prove(ctx context.Context, cfg config, stdout io.Writer, p *proof.Progress) (err error) {
	if err := localserver.Available(localserver.KindPostgres, localserver.KindRedis); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(cfg.dir, "fanout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	// The servers run as other users if we are root.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return err
	}
	host, err := localserver.Open(localserver.Config{Dir: scratch})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	s, err := setUp(ctx, cfg, host, p)
	if err != nil {
		return fmt.Errorf("preparing: %w", errors.Join(ctx.Err(), err))
	}
	defer s.close()

	r := newReport(cfg, s)
	for _, plan := range []struct {
		name   string
		killed bool
	}{{"one worker", false}, {"killed at half, then another", true}} {
		p.Title(plan.name)
		done, err := s.deliver(ctx, plan.name, plan.killed, p)
		if err != nil {
			return fmt.Errorf("%s: %w", plan.name, errors.Join(ctx.Err(), err))
		}
		r.Runs = append(r.Runs, done)
		fmt.Fprintf(stdout, "%-30s %7.2f s, %8.0f deliveries/s, %d repeated, %d of %d feeds wrong\n",
			plan.name, done.Seconds, done.Rate, done.Repeated, done.Wrong, done.Checked)
	}
	if err := r.write(cfg); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "the report is in", cfg.out)
	return r.trouble()
}
