package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

// The benchmarks start their own servers, in a process of theirs.
func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres) }

// add fails the test on a line that cannot be read.
func add(t *testing.T, m *measured, lines ...string) {
	t.Helper()
	for _, line := range lines {
		_, err := m.add(line)
		require.NoError(t, err)
	}
}

func TestMeasuredReadsWhatBenchmarksPrint(t *testing.T) {
	t.Parallel()
	m := newMeasured()
	add(t, m,
		"goos: linux",
		"cpu: Some Processor",
		"postgresql: 15.18 (Debian 15.18-0+deb12u1)",
		"BenchmarkIDGen/cost/google-v7-2         \t 1000000\t       216.8 ns/id\t      16 B/op\t       1 allocs/op",
		"BenchmarkIDGen/shards=16-2 \t 5 \t 5456562 ids/s",
		"BenchmarkIDGen",
		"PASS",
	)
	require.Equal(t, []string{"IDGen/cost/google-v7", "IDGen/shards=16"}, m.rows)
	require.Equal(t, map[string][]float64{"ns/id": {216.8}, "B/op": {16}, "allocs/op": {1}}, m.values["IDGen/cost/google-v7"])
	require.Equal(t, map[string][]float64{"ids/s": {5456562}}, m.values["IDGen/shards=16"])
	require.Equal(t, map[string]string{"cpu": "Some Processor", "postgresql": "15.18 (Debian 15.18-0+deb12u1)"}, m.machine)

	for _, line := range []string{"BenchmarkX-2 10 fast ns/id", "BenchmarkX-2 10 1.5 ns/id 3"} {
		_, err := m.add(line)
		require.Error(t, err, line)
	}
}

// A busy round slows both rows, so it must not move their ratio.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	t.Parallel()
	m := newMeasured()
	add(t, m,
		"BenchmarkA-2 1 50 ns/id", "BenchmarkB-2 1 40 ns/id",
		"BenchmarkA-2 1 500 ns/id", "BenchmarkB-2 1 400 ns/id",
		"BenchmarkA-2 1 75 ns/id", "BenchmarkB-2 1 60 ns/id",
		"BenchmarkOnce-2 1 60 ns/id",
	)
	require.Equal(t, []float64{1.25, 1.25, 1.25}, m.ratios(bar{Row: "A", Over: "B", Unit: "ns/id"}))
	require.Equal(t, []float64{50, 500, 75}, m.ratios(bar{Row: "A", Unit: "ns/id"}))
	require.Empty(t, m.ratios(bar{Row: "A", Over: "Once", Unit: "ns/id"}))
	require.Empty(t, m.ratios(bar{Row: "Nothing", Unit: "ns/id"}))
	require.Equal(t, spread{Median: 75, Min: 50, Max: 500}, spreadOf([]float64{500, 75, 50}))
	require.Equal(t, spread{Median: 2.5, Min: 1, Max: 4}, spreadOf([]float64{1, 4, 2, 3}))
}

// Rows that had to share a core, or had only one for two goroutines, show less
// than what contention costs.
func TestRatiosLeaveOutRoundsWithoutTheirCores(t *testing.T) {
	t.Parallel()
	m := newMeasured()
	add(t, m,
		"BenchmarkA-2 1 199 %core 90 ns/id", "BenchmarkB-2 1 198 %core 30 ns/id",
		"BenchmarkA-2 1 99 %core 40 ns/id", "BenchmarkB-2 1 198 %core 30 ns/id",
		"BenchmarkA-2 1 199 %core 90 ns/id", "BenchmarkB-2 1 101 %core 60 ns/id",
	)
	require.Equal(t, []float64{3}, m.ratios(bar{Row: "A", Over: "B", Unit: "ns/id", Core: 150}))
	require.Equal(t, []float64{90, 90}, m.ratios(bar{Row: "A", Unit: "ns/id", Core: 150}))
	require.Len(t, m.ratios(bar{Row: "A", Over: "B", Unit: "ns/id"}), 3)
}

func TestBarsPassAndMiss(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		bar    bar
		value  float64
		passed bool
	}{
		{"AtMost", bar{Most: 1.25}, 1.25, true},
		{"AboveMost", bar{Most: 1.25}, 1.26, false},
		{"None", bar{}, 0, true},
		{"NotNone", bar{}, 1, false},
		{"AtLeast", bar{Least: 0.6}, 4, true},
		{"BelowLeast", bar{Least: 0.6}, 0.59, false},
		{"Between", bar{Least: 966.8, Most: 986.3}, 976.6, true},
		{"BelowBoth", bar{Least: 966.8, Most: 986.3}, 244, false},
		{"AboveBoth", bar{Least: 966.8, Most: 986.3}, 1040, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.passed, test.bar.passedBy(test.value))
		})
	}
}

// The shortest possible run: every benchmark works, and each bar finds its rows.
// The limit leaves no time for a second round.
func TestRunMeasuresEveryBar(t *testing.T) {
	t.Parallel()
	if err := localserver.Available(localserver.KindPostgres); err != nil {
		t.Skip(err) // where CI is set, TestMain has failed already
	}
	file := filepath.Join(t.TempDir(), "idgen.json")
	var stdout, stderr bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-rounds=2", "-limit=1ns", "-benchtime=1x", "-json", file}, &stdout, &stderr))
	require.Empty(t, stderr.String(), "progress belongs on a terminal")

	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var r report
	require.NoError(t, json.Unmarshal(text, &r))
	require.Equal(t, 1, r.Rounds)
	require.Equal(t, 2, r.Asked)
	require.NotEqual(t, "not measured", r.Machine["postgresql"])
	require.Len(t, r.Bars, len(bars))
	figures := map[string]map[string]spread{}
	for _, row := range r.Rows {
		figures[row.Name] = row.Figures
	}
	for _, b := range r.Bars {
		require.Contains(t, stdout.String(), b.Name)
		for _, row := range []string{b.Row, b.Over} {
			if row != "" {
				require.Contains(t, figures[row], b.Unit, b.Name)
			}
			if row != "" && b.Core > 0 {
				require.Contains(t, figures[row], "%core", b.Name)
			}
		}
		// In one ID a row cannot show that it has its cores.
		require.True(t, b.Core > 0 || b.Result != nil, b.Name)
	}
	for _, row := range r.Rows {
		require.Positive(t, row.Figures["ns/id"].Min, row.Name)
		require.Contains(t, stdout.String(), row.Name)
	}
}

func TestRunRefusesBadArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-rounds=0"}, {"fast"}, {"-json"}} {
		require.Error(t, run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{}), "%q", args)
	}
}
