// Command pgbounce measures the pooler pgbounce beside PgBouncer and prints how
// they compare with what we want. In the folder bench:
//
//	go run ./cmd/pgbounce [-rounds 5] [-secs 5] [-clients 1,32,1000]
//	    [-modes simple,extended,prepared] [-idle 5000] [-only REGEXP]
//	    [-candidate PROGRAM] [-quick] [-json FILE]
//	go run ./cmd/pgbounce -soak 30m [-every 20s] [-candidate PROGRAM]
//
// It starts one PostgreSQL, fills it with pgbench -i, and starts both poolers in
// front of it with the same pgbouncer.ini. Then it runs pgbench through one and
// the other by turns, and counts their logged transactions and processor time in
// the part of a run in which all clients are logged in. A round has each row
// once, so that a busy moment of the machine harms one round of all rows and not
// all rounds of one. A ratio is taken within a round, between runs that followed
// one another; every other round has them the other way round.
//
// The rows pgx are a Go program's: its pgx goes through pgbounce within this
// process, and by TCP through PgBouncer.
//
// -candidate names another program that reads a pgbouncer.ini, which pgx then
// reaches by TCP, too. With PgBouncer itself the ratios show how much is noise.
//
// -soak measures nothing. It replaces pgbounce by a new process again and again
// while programs use it in all ways, and fails if one of them sees an error that
// it did not cause, or an answer that is not its own.
//
// The exit status says whether the measurement worked, not whether a bar was
// passed: timing on a shared machine is no test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
		fmt.Fprintln(os.Stderr, "pgbounce:", err)
		os.Exit(1)
	}
}

type config struct {
	rounds    int
	secs      int
	clients   []int
	modes     []string
	idle      int
	only      *regexp.Regexp
	candidate string // a path
	ours      bool   // no path was given, so it is pgbounce
	json      string
	soak      time.Duration // if not 0
	every     time.Duration
	command   string // to repeat the run
}

func parse(args []string, stderr io.Writer) (config, error) {
	cfg := config{command: strings.Join(append([]string{"go run ./cmd/pgbounce"}, args...), " ")}
	flags := flag.NewFlagSet("pgbounce", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&cfg.rounds, "rounds", 5, "how often each row is measured")
	flags.IntVar(&cfg.secs, "secs", 5, "how long a run of pgbench takes, in seconds")
	clients := flags.String("clients", "1,32,1000", "numbers of clients")
	modes := flags.String("modes", "simple,extended,prepared", "protocols of pgbench")
	flags.IntVar(&cfg.idle, "idle", 5000, "how many idle clients to measure the memory of")
	only := flags.String("only", "", "measure only the rows that this regular expression matches, such as ^simple or =32$")
	flags.StringVar(&cfg.candidate, "candidate", "", "the program to compare with PgBouncer, if not pgbounce")
	quick := flags.Bool("quick", false, "one round, 3 seconds each")
	flags.StringVar(&cfg.json, "json", "", "write all figures to this file, too")
	flags.DurationVar(&cfg.soak, "soak", 0, "use the pooler under rolling restarts for so long")
	flags.DurationVar(&cfg.every, "every", 20*time.Second, "with -soak, how long a process serves before it is replaced")
	if err := flags.Parse(args); err != nil {
		return cfg, err
	}
	cfg.ours = cfg.candidate == ""
	if *quick {
		cfg.rounds, cfg.secs = 1, 3
	}
	for word := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return cfg, fmt.Errorf("-clients has %q: want numbers above 0, with commas", word)
		}
		cfg.clients = append(cfg.clients, n)
	}
	cfg.modes = strings.Split(*modes, ",")
	for _, mode := range cfg.modes {
		if !slices.Contains([]string{"simple", "extended", "prepared"}, mode) {
			return cfg, fmt.Errorf("-modes has %q: want simple, extended or prepared, with commas", mode)
		}
	}
	var err error
	if cfg.only, err = regexp.Compile(*only); err != nil {
		return cfg, fmt.Errorf("-only: %w", err)
	}
	switch {
	case flags.NArg() > 0:
		return cfg, fmt.Errorf("want no argument, got %q", flags.Args())
	case cfg.rounds < 1:
		return cfg, fmt.Errorf("-rounds is %d: want 1 or more", cfg.rounds)
	case cfg.secs < 2:
		return cfg, fmt.Errorf("-secs is %d: want 2 or more, as the logins are not counted", cfg.secs)
	case cfg.soak < 0 || cfg.every <= 0:
		return cfg, fmt.Errorf("-soak is %s and -every %s: want times", cfg.soak, cfg.every)
	case cfg.idle < 1:
		return cfg, fmt.Errorf("-idle is %d: want 1 or more", cfg.idle)
	}
	return cfg, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if err := localserver.Available(localserver.KindPostgres, localserver.KindPgBouncer); err != nil {
		return err
	}
	files, err := raiseFiles(cfg)
	if err != nil {
		return err
	}
	cfg.idle = min(cfg.idle, files-spareFiles)

	if cfg.soak > 0 {
		return soak(ctx, cfg, stdout, proof.NewProgress(stderr))
	}
	r := newReport(cfg, files)
	if err := compare(ctx, cfg, r, proof.NewProgress(stderr)); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if err := r.finish(cfg.json); err != nil {
		return err
	}
	return r.write(stdout)
}

// build makes the command of pgbounce, unless another program is the candidate.
// It is in the module around this one.
func (cfg *config) build(ctx context.Context, host *localserver.Host, p *proof.Progress) error {
	p.Title("preparing")
	if !cfg.ours {
		return nil
	}
	cfg.candidate = filepath.Join(host.Dir(), "pgbounce")
	return p.During("building pgbounce", func() error { return build(ctx, cfg.candidate) })
}

func build(ctx context.Context, to string) error {
	where, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/shardgram/shardgram").Output()
	if err != nil {
		return fmt.Errorf("look for the module: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", to, "./pgbounce/cmd/pgbounce")
	cmd.Dir = strings.TrimSpace(string(where))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build pgbounce: %w\n%s", err, out)
	}
	return nil
}

// compare starts the servers and measures all rows, round by round.
func compare(ctx context.Context, cfg config, r *report, p *proof.Progress) (err error) {
	defer p.Clear()
	host, err := localserver.Open(localserver.Config{Fast: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if err := cfg.build(ctx, host, p); err != nil {
		return err
	}
	s, err := setUp(ctx, cfg, host, p)
	if err != nil {
		return fmt.Errorf("preparing: %w", err)
	}
	defer s.close()

	rows := s.rows(cfg)
	if len(rows) == 0 {
		return errors.New("-clients, -modes and -only leave nothing to measure")
	}
	var done, all int64
	for _, row := range rows {
		all += int64(row.times(cfg.rounds) * len(row.turns))
	}
	p.Start("")
	for round := range cfg.rounds {
		for _, row := range rows {
			if round >= row.times(cfg.rounds) {
				continue
			}
			turns := slices.Clone(row.turns)
			if round%2 == 1 {
				slices.Reverse(turns)
			}
			for _, turn := range turns {
				p.Title(fmt.Sprintf("round %d of %d, %s, %s", round+1, cfg.rounds, row.name, r.Names[turn.who]))
				p.At(done, all)
				figures, err := turn.measure(ctx)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", row.name, r.Names[turn.who], err)
				}
				r.add(row.name, turn.who, round, figures)
				done++
			}
		}
	}
	return nil
}

// spareFiles is how many open files are left for other things than clients.
const spareFiles = 300

// raiseFiles lets this process and those it starts open as many files as the
// system allows, and returns how many that are. Go does so for this process
// alone.
func raiseFiles(cfg config) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, err
	}
	files, need := int(min(limit.Max, 1<<30)), slices.Max(cfg.clients)+spareFiles
	if files < need {
		return 0, fmt.Errorf("%d clients need %d open files and the limit is %d: raise it with ulimit -n, or choose fewer with -clients",
			slices.Max(cfg.clients), need, files)
	}
	return files, nil
}
