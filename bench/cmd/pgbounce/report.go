package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// A unit is a figure of a row, as the report shows it.
type unit struct {
	key  string
	text string
}

var units = []unit{
	{"tps", "per second"},
	{"p50_us", "p50, µs"},
	{"p99_us", "p99, µs"},
	{"cpu_us", "CPU per query, µs"},
	{"all_cpu_us", "CPU per query, pgx's too, µs"},
	{"rss_mb", "memory, MB"},
	{"fresh_bytes", "bytes per client"},
	{"used_bytes", "bytes per client that had a query"},
}

// A bar is what we want of a figure of some rows: of the ratio of the candidate
// to the peer or, if Absolute, of the candidate's own.
type bar struct {
	rows     *regexp.Regexp
	unit     string
	least    float64
	most     float64
	absolute bool
}

var bars = []bar{
	{rows: regexp.MustCompile(`^(simple|extended)/`), unit: "tps", least: 1},
	{rows: regexp.MustCompile(`^prepared/`), unit: "tps", least: 1},
	{rows: regexp.MustCompile(`^(simple|extended)/clients=32$`), unit: "cpu_us", most: 1.1},
	{rows: regexp.MustCompile(`^(simple|extended)/clients=1000$`), unit: "cpu_us", most: 1},
	{rows: regexp.MustCompile(`^(simple|extended)/clients=1000$`), unit: "p99_us", most: 1},
	{rows: regexp.MustCompile(`^pgx/`), unit: "tps", least: 1.3},
	{rows: regexp.MustCompile(`^idle/`), unit: "fresh_bytes", most: 4096, absolute: true},
	{rows: regexp.MustCompile(`^idle/`), unit: "used_bytes", most: 4096, absolute: true},
}

func (b bar) String() string {
	if b.least > 0 {
		return fmt.Sprintf("%v or more", b.least)
	}
	return fmt.Sprintf("%v or less", b.most)
}

// verdict judges by the median. With five rounds, the true median lies between
// the least and the most of them in 15 of 16 cases, so a miss by less may be
// noise.
func (b bar) verdict(s spread) string {
	passed := func(v float64) bool { return v >= b.least && (b.most == 0 || v <= b.most) }
	switch {
	case passed(s.Median):
		return "pass"
	case s.Rounds >= 5 && (passed(s.Min) || passed(s.Max)):
		return "miss, but within the noise"
	}
	return "miss"
}

// A spread is what rounds found.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Rounds int     `json:"rounds"`
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{(sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1], n}
}

func (s spread) String() string {
	if s.Rounds == 1 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// number keeps at least three digits.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return proof.Count(int64(v + 0.5))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// A report is all that was found.
type report struct {
	Date    string            `json:"date"`
	Command string            `json:"command"`
	Machine map[string]string `json:"machine"`
	Names   map[string]string `json:"names"` // of peer, candidate and direct
	Rounds  int               `json:"rounds"`
	Seconds int               `json:"seconds"`
	Files   int               `json:"open_files"` // the limit
	Runs    []measurement     `json:"runs"`
	Lines   []line            `json:"lines"`
}

// A measurement is one turn.
type measurement struct {
	Row     string  `json:"row"`
	Who     string  `json:"who"`
	Round   int     `json:"round"`
	Figures figures `json:"figures"`
}

// A line is one figure of one row.
type line struct {
	Row     string            `json:"row"`
	Unit    string            `json:"unit"`
	Of      map[string]spread `json:"of"` // by who
	Ratio   *spread           `json:"ratio,omitempty"`
	Bar     string            `json:"bar,omitempty"`
	Verdict string            `json:"verdict,omitempty"`
}

func newReport(cfg config, files int) *report {
	r := &report{
		Date: time.Now().Format(time.DateOnly), Command: cfg.command, Machine: proof.Machine(),
		Rounds: cfg.rounds, Seconds: cfg.secs, Files: files,
		Names: map[string]string{peer: "PgBouncer", candidate: "pgbounce", direct: "direct"},
	}
	if !cfg.ours {
		r.Names[candidate] = filepath.Base(cfg.candidate)
	}
	if program, err := pgbouncer(); err == nil {
		r.Machine["pgbouncer"] = proof.Version(program, "--version")
	}
	if program, err := pgbench(); err == nil {
		r.Machine["pgbench"] = proof.Version(program, "--version")
	}
	return r
}

func (r *report) add(row, who string, round int, found figures) {
	r.Runs = append(r.Runs, measurement{row, who, round, found})
}

// finish draws the lines from the runs and writes the JSON file, if one is asked
// for.
func (r *report) finish(file string) error {
	var rows []string
	for _, m := range r.Runs {
		if !slices.Contains(rows, m.Row) {
			rows = append(rows, m.Row)
		}
	}
	for _, row := range rows {
		for _, u := range units {
			if l, ok := r.line(row, u); ok {
				r.Lines = append(r.Lines, l)
			}
		}
	}
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// line gathers one figure of a row, if it has that.
func (r *report) line(row string, u unit) (line, bool) {
	of := map[string]map[int]float64{}
	for _, m := range r.Runs {
		if v, ok := m.Figures[u.key]; ok && m.Row == row {
			if of[m.Who] == nil {
				of[m.Who] = map[int]float64{}
			}
			of[m.Who][m.Round] = v
		}
	}
	if len(of) == 0 {
		return line{}, false
	}
	l := line{Row: row, Unit: u.text, Of: map[string]spread{}}
	for who, values := range of {
		l.Of[who] = spreadOf(slices.Collect(maps.Values(values)))
	}
	var ratios []float64
	for round, v := range of[candidate] {
		if p := of[peer][round]; p > 0 {
			ratios = append(ratios, v/p)
		}
	}
	if len(ratios) > 0 {
		s := spreadOf(ratios)
		l.Ratio = &s
	}
	for _, b := range bars {
		if b.unit != u.key || !b.rows.MatchString(row) {
			continue
		}
		judged, ok := l.Of[candidate]
		if !b.absolute {
			if ok = l.Ratio != nil; ok {
				judged = *l.Ratio
			}
		}
		if l.Bar = b.String(); ok {
			l.Verdict = b.verdict(judged)
		}
	}
	return l, true
}

// write prints the table.
func (r *report) write(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s, %s cores, %s of memory, %s, load average %s before, ulimit -n %d\n",
		m["cpu"], m["cores"], m["memory"], m["go"], m["load"], r.Files)
	fmt.Fprintf(w, "PostgreSQL %s, PgBouncer %s; %d rounds of %d s; medians (least–most); a ratio is the median of the rounds' own\n\n",
		m["pgbench"], m["pgbouncer"], r.Rounds, r.Seconds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "row\t\t%s\t%s\tratio\twanted\t\tdirect\n", r.Names[peer], r.Names[candidate])
	shown := ""
	for _, l := range r.Lines {
		name := l.Row
		if name == shown {
			name = ""
		}
		shown = l.Row
		cells := []string{name, l.Unit, "", "", "", l.Bar, l.Verdict, ""}
		for i, who := range map[int]string{2: peer, 3: candidate, 7: direct} {
			if s, ok := l.Of[who]; ok {
				cells[i] = s.String()
			}
		}
		if l.Ratio != nil {
			cells[4] = l.Ratio.String()
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return t.Flush()
}
