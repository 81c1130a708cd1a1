package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// The command starts its own servers.
func TestMain(m *testing.M) {
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedPgBouncer)
}

// needServers skips the test at home if a server is missing. Where CI is set,
// TestMain has failed already. It returns where PgBouncer is.
func needServers(t *testing.T) string {
	t.Helper()
	if err := localserver.Available(localserver.KindPostgres, localserver.KindPgBouncer); err != nil {
		t.Skip(err)
	}
	program, err := pgbouncer()
	require.NoError(t, err)
	return program
}

// PgBouncer beside itself: every row is measured.
func TestRunMeasuresEachRow(t *testing.T) {
	t.Parallel()
	program := needServers(t)
	file := filepath.Join(t.TempDir(), "figures.json")
	var stdout, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"-candidate", program, "-rounds=1", "-secs=2", "-clients=4", "-modes=simple", "-idle=50", "-json", file,
	}, &stdout, &stderr))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(text, &r))
	found := map[string]bool{}
	for _, m := range r.Runs {
		found[m.Row+" "+m.Who] = true
		if strings.HasPrefix(m.Row, "idle") {
			require.Positive(t, m.Figures["fresh_bytes"], m)
			require.Less(t, m.Figures["fresh_bytes"], 1e5, m)
			continue
		}
		require.Greater(t, m.Figures["tps"], 10.0, m)
		require.Positive(t, m.Figures["p50_us"], m)
		require.GreaterOrEqual(t, m.Figures["p99_us"], m.Figures["p50_us"], m)
		cpu := m.Figures["cpu_us"]
		if strings.HasPrefix(m.Row, "pgx") {
			cpu = m.Figures["all_cpu_us"]
		} else {
			require.Positive(t, m.Figures["rss_mb"], m)
		}
		// No more than a core for PgBouncer, and two for pgx and PgBouncer.
		require.Positive(t, cpu, m)
		require.Less(t, cpu*m.Figures["tps"], 3e6, m)
	}
	for _, row := range []string{"simple/clients=4", "reconnect/clients=4", "pgx/goroutines=8", "pgx/goroutines=32", "idle/clients=50"} {
		require.True(t, found[row+" "+peer], row)
		require.True(t, found[row+" "+candidate], row)
		require.Contains(t, stdout.String(), row)
	}
}

// PgBouncer 1.18 has no prepared statements in transaction mode, so this fails
// in the middle of a run.
func TestAFailingRunSaysWhy(t *testing.T) {
	t.Parallel()
	program := needServers(t)
	err := run(t.Context(), []string{
		"-candidate", program, "-rounds=1", "-secs=2", "-clients=40", "-modes=prepared", "-only=^prepared",
	}, io.Discard, io.Discard)
	require.ErrorContains(t, err, "prepared/clients=40, pgbouncer: pgbench: ")
	require.ErrorContains(t, err, "prepared statement") // what the pooler's client saw
}

// script returns a program that may take the place of a pooler.
func script(t *testing.T, text string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pooler")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"+text), 0o755))
	return program
}

// Nothing is replaced in so short a time.
func TestASoakWithoutRestartsPasses(t *testing.T) {
	t.Parallel()
	program := needServers(t)
	var stdout bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-soak=4s", "-candidate", program}, &stdout, io.Discard))
	require.Contains(t, stdout.String(), "\n0 restarts")
	require.NotContains(t, stdout.String(), " 0 echo")
}

// A pooler that leaves its clients alone when it goes: only they can tell.
func TestASoakSeesWhatClientsSee(t *testing.T) {
	t.Parallel()
	program := script(t, needServers(t)+` "$@" & pid=$!
trap 'kill -9 $pid; exit 0' TERM INT
wait
`)
	err := run(t.Context(), []string{"-soak=6s", "-every=2s", "-candidate", program}, io.Discard, io.Discard)
	require.ErrorContains(t, err, " jobs failed, in ")
	require.ErrorContains(t, err, " × echo: ")
}

func TestAPoolerThatDoesNotStartSaysWhy(t *testing.T) {
	t.Parallel()
	needServers(t)
	program := script(t, "echo no luck today\nexit 3\n")
	err := run(t.Context(), []string{"-candidate", program, "-clients=1"}, io.Discard, io.Discard)
	require.ErrorContains(t, err, "exit status 3")
	require.ErrorContains(t, err, "no luck today")
}

func TestOnlyTheWindowOfALogCounts(t *testing.T) {
	t.Parallel()
	const log = "0 1 900 0 99 999999\n" + // before the window
		"0 2 100 0 100 1\n" +
		"1 1 300 0 100 500000\n" +
		"0 3 200 0 101 0\n" +
		"1 2 901 0 101 1\n" // after it
	latencies, err := readLog(strings.NewReader(log), time.Unix(100, 0), time.Unix(101, 0))
	require.NoError(t, err)
	require.Equal(t, []float64{100, 300, 200}, latencies)
	require.Equal(t, figures{"p50_us": 200, "p99_us": 200}, quantiles(latencies))

	for name, log := range map[string]string{
		"Empty": "", "Outside": "0 1 900 0 99 0\n", "Failed": "0 1 failed 0 100 1\n", "Short": "0 1 900\n",
	} {
		_, err := readLog(strings.NewReader(log), time.Unix(100, 0), time.Unix(101, 0))
		require.Error(t, err, name)
	}
}

func TestTPSOfAFailedRunIsNoFigure(t *testing.T) {
	t.Parallel()
	const text = "number of failed transactions: 0 (0.000%)\ninitial connection time = 5.1 ms\ntps = 7467.112 (without initial connection time)\n"
	tps, err := readTPS(text)
	require.NoError(t, err)
	require.InDelta(t, 7467.112, tps, 1e-9)
	for _, bad := range []string{"", strings.Replace(text, ": 0", ": 7", 1), strings.Replace(text, "tps", "x", 1)} {
		_, err := readTPS(bad)
		require.Error(t, err)
	}
}

// A busy round slows both, so it must not move their ratio.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	t.Parallel()
	r := report{}
	for round, tps := range []float64{100, 1000, 10} {
		r.add("simple/clients=1", peer, round, figures{"tps": tps, "p50_us": 1})
		r.add("simple/clients=1", candidate, round, figures{"tps": tps * 1.25, "p50_us": 2})
	}
	r.add("simple/clients=1", candidate, 3, figures{"tps": 1}) // without its peer
	require.NoError(t, r.finish(""))
	require.Len(t, r.Lines, 2)
	require.Equal(t, &spread{1.25, 1.25, 1.25, 3}, r.Lines[0].Ratio)
	require.Equal(t, spread{100, 10, 1000, 3}, r.Lines[0].Of[peer])
	require.Equal(t, "1 or more", r.Lines[0].Bar)
	require.Equal(t, "pass", r.Lines[0].Verdict)
	require.Empty(t, r.Lines[1].Bar)
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	least := bar{rows: regexp.MustCompile("x"), least: 1}
	most := bar{rows: regexp.MustCompile("x"), most: 1.1}
	for name, test := range map[string]struct {
		bar  bar
		s    spread
		want string
	}{
		"AtLeast":      {least, spread{1, 0.5, 1.5, 5}, "pass"},
		"AtMost":       {most, spread{1.1, 0.5, 1.5, 5}, "pass"},
		"Noise":        {least, spread{0.99, 0.9, 1, 5}, "miss, but within the noise"},
		"NoiseOfMost":  {most, spread{1.2, 1.1, 1.5, 5}, "miss, but within the noise"},
		"Miss":         {least, spread{0.98, 0.9, 0.99, 5}, "miss"},
		"MissOfMost":   {most, spread{1.2, 1.11, 1.5, 5}, "miss"},
		"TooFewRounds": {least, spread{0.99, 0.9, 1, 4}, "miss"},
	} {
		require.Equal(t, test.want, test.bar.verdict(test.s), name)
	}
}

func TestFlagsAreChecked(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-rounds=0"}, {"-secs=1"}, {"-clients=0"}, {"-clients=1,"}, {"-modes=fast"}, {"-only=("}, {"-idle=0"}, {"-soak=-1s"}, {"-every=0s"}, {"more"},
	} {
		_, err := parse(args, io.Discard)
		require.Error(t, err, args)
	}
	cfg, err := parse([]string{"-quick", "-clients=1,32"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, []int{1, 32}, cfg.clients)
	require.Equal(t, 1, cfg.rounds)
	require.True(t, cfg.ours)
}
