// Command proof300m measures what 300 million pairs of photo and owner take in
// Redis, in the maps of hashkv and in the layouts that one would use without it,
// and writes a report with a chart. In the folder bench:
//
//	go run ./cmd/proof300m [-n 300000000] [-peers 3000000] [-out ../docs]
//	    [-dir FOLDER] [-time 5s] [-json FILE]
//
// Every layout has a server of its own, one after the other: it is filled, read
// and checked, saved, stopped, started again and checked again. Dense and sparse
// maps are measured with as many keys as their peers, and then with n. The
// values follow from the number of a pair, so that every answer is checked
// without remembering any. A wrong or missing answer is an error, a bar that was
// missed is not: timing on a shared machine is no test.
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
	"time"

	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "proof300m:", err)
		os.Exit(1)
	}
}

type config struct {
	n, peers int64
	out      string
	dir      string
	time     time.Duration // of each kind of read
	json     string
	command  string // to repeat the run
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg := config{command: strings.Join(append([]string{"go run ./cmd/proof300m"}, args...), " ")}
	flags := flag.NewFlagSet("proof300m", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Int64Var(&cfg.n, "n", 300_000_000, "how many pairs hashkv is measured with")
	flags.Int64Var(&cfg.peers, "peers", 3_000_000, "how many pairs all layouts are measured with, n at most")
	flags.StringVar(&cfg.out, "out", "../docs", "the folder for the report and its charts")
	flags.StringVar(&cfg.dir, "dir", "/var/tmp", "the folder for the data of the servers, on a disk")
	flags.DurationVar(&cfg.time, "time", 5*time.Second, "how long each kind of read is measured")
	flags.StringVar(&cfg.json, "json", "", "write all figures to this file, too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("want no argument, got %q", flags.Args())
	case cfg.n < 1000 || cfg.n > maxPairs:
		return fmt.Errorf("-n is %d: want 1000 to %d", cfg.n, int64(maxPairs))
	case cfg.peers < 1000:
		return fmt.Errorf("-peers is %d: want 1000 or more", cfg.peers)
	case cfg.time <= 0:
		return fmt.Errorf("-time is %s: want more than 0", cfg.time)
	}
	cfg.peers = min(cfg.peers, cfg.n)
	have, err := available(cfg.dir)
	if err != nil {
		return err
	}
	return prove(ctx, cfg, have, stdout, proof.NewProgress(stderr))
}

// prove measures all layouts and writes the report.
func prove(ctx context.Context, cfg config, have resources, stdout io.Writer, p *proof.Progress) (err error) {
	rows := layouts(cfg)
	if err := have.check(need(rows)); err != nil {
		return err
	}
	if err := localserver.Available(localserver.KindRedis, localserver.KindMemcached); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(cfg.dir, "proof300m-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	// The servers run as another user if we are root.
	if err := os.Chmod(scratch, 0o711); err != nil {
		return err
	}
	host, err := localserver.Open(localserver.Config{Dir: scratch})
	if err != nil {
		return err
	}
	// A SAVE of gigabytes does not hear that ctx has ended, but ends with its
	// server.
	stop := context.AfterFunc(ctx, func() { host.Close() })
	defer func() {
		stop()
		err = errors.Join(err, host.Close())
	}()

	r := newReport(cfg)
	for at, l := range rows {
		p.Title(fmt.Sprintf("%d of %d, %s", at+1, len(rows), l.Name))
		done, err := measure(ctx, host, l, cfg.time, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%s with %d keys: %w", l.Name, l.Keys, err)
		}
		r.Results = append(r.Results, done)
		fmt.Fprintf(stdout, "%-22s %11d keys %7.2f bytes each, %8.0f loads/s, %7.0f gets/s\n",
			l.Name, l.Keys, done.BytesPerKey, done.LoadRate, done.Get.Rate)
	}
	r.finish()
	if err := r.write(cfg); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "the report is in", cfg.out)
	return r.trouble()
}
