package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
)

// A bar is what we want of one figure.
type bar struct {
	Name   string  `json:"name"`
	Row    string  `json:"row"`
	Over   string  `json:"over,omitempty"` // the row it is divided by
	Unit   string  `json:"unit"`
	Core   float64 `json:"core,omitempty"` // rounds in which a row had less %core do not count
	Least  float64 `json:"least"`
	Most   float64 `json:"most,omitempty"` // 0 is no limit, but with Least 0
	Result *spread `json:"result"`         // nil if it was not measured
	Rounds int     `json:"rounds"`         // that count
	Passed bool    `json:"passed"`         // by the median
}

// Two goroutines that take turns on one core do not contend for anything, and
// look faster than they are when the machine is busy.
var (
	oneCore  = 75.0
	allCores = oneCore * float64(runtime.GOMAXPROCS(0))
)

var bars = []bar{
	{Name: "Next / time.Now, 1 goroutine", Row: "IDGen/cost/shardgram", Over: "IDGen/cost/time.Now", Unit: "ns/id", Core: oneCore, Most: 1.25},
	{Name: "Next / time.Now, parallel", Row: "IDGen/cost-parallel/shardgram", Over: "IDGen/cost-parallel/time.Now", Unit: "ns/id", Core: allCores, Most: 1.7},
	{Name: "allocations of Next", Row: "IDGen/cost/shardgram", Unit: "allocs/op"},
	{Name: "Fill of 100, ns per ID", Row: "IDGen/batch=100", Unit: "ns/id", Core: oneCore, Most: 1},
	{Name: "one shard drained, ns per ID", Row: "IDGen/throttled/shardgram", Unit: "ns/id", Least: 966.8, Most: 986.3},
	{Name: "and meanwhile, % of a core", Row: "IDGen/throttled/shardgram", Unit: "%core", Most: 10},
	{Name: "next_id() / published, 1 session, time", Row: "NextID/calls/sessions=1/shardgram", Over: "NextID/calls/sessions=1/published", Unit: "ns/id", Most: 1.3},
	{Name: "next_id() / published, 8 sessions, IDs per s", Row: "NextID/calls/sessions=8/shardgram", Over: "NextID/calls/sessions=8/published", Unit: "ids/s", Least: 0.6},
}

// wants returns the bar as text.
func (b bar) wants() string {
	switch {
	case b.Least > 0 && b.Most > 0:
		return fmt.Sprintf("%v to %v", b.Least, b.Most)
	case b.Least > 0:
		return fmt.Sprintf("%v or more", b.Least)
	default:
		return fmt.Sprintf("%v or less", b.Most)
	}
}

func (b bar) passedBy(v float64) bool {
	return v >= b.Least && (v <= b.Most || b.Most == 0 && b.Least > 0)
}

// A report is all that was found.
type report struct {
	Machine    map[string]string `json:"machine"`
	LoadBefore string            `json:"load_before"`
	LoadAfter  string            `json:"load_after"`
	Rounds     int               `json:"rounds"`
	Asked      int               `json:"asked"` // rounds; the limit may end them early
	Benchtime  string            `json:"benchtime"`
	Bars       []bar             `json:"bars"`
	Rows       []row             `json:"rows"`
}

type row struct {
	Name    string            `json:"name"`
	Figures map[string]spread `json:"figures"` // by unit
}

func (r *report) fill(m *measured) {
	maps.Copy(r.Machine, m.machine)
	for _, b := range bars {
		if values := m.ratios(b); len(values) > 0 {
			s := spreadOf(values)
			b.Result, b.Rounds, b.Passed = &s, len(values), b.passedBy(s.Median)
		}
		r.Bars = append(r.Bars, b)
	}
	for _, name := range m.rows {
		r.Rows = append(r.Rows, row{name, m.spreads(name)})
	}
}

func (r *report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (r *report) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s, GOMAXPROCS %s, %s, PostgreSQL %s\n",
		r.Machine["cpu"], r.Machine["gomaxprocs"], r.Machine["go"], r.Machine["postgresql"])
	fmt.Fprintf(t, "%d of %d rounds, %s per row; load average %s before, %s after\n\n", r.Rounds, r.Asked, r.Benchtime, r.LoadBefore, r.LoadAfter)
	fmt.Fprintln(t, "bar\tmedian\tmin\tmax\trounds\twanted\t")
	for _, b := range r.Bars {
		if b.Result == nil {
			fmt.Fprintf(t, "%s\t-\t-\t-\t0\t%s\tnot measured\n", b.Name, b.wants())
			continue
		}
		verdict := "miss"
		if b.Passed {
			verdict = "pass"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", b.Name,
			figure(b.Result.Median), figure(b.Result.Min), figure(b.Result.Max), b.Rounds, b.wants(), verdict)
	}

	fmt.Fprintf(t, "\nrow\tns/id\tmin\tids/s\t%%core\tallocs/op\tduplicates\n")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s", row.Name, row.median("ns/id"), row.least("ns/id"))
		for _, unit := range []string{"ids/s", "%core", "allocs/op"} {
			fmt.Fprintf(t, "\t%s", row.median(unit))
		}
		fmt.Fprintf(t, "\t%s\n", row.most("duplicates"))
	}
	return t.Flush()
}

func (r row) median(unit string) string {
	return r.show(unit, func(s spread) float64 { return s.Median })
}

func (r row) least(unit string) string {
	return r.show(unit, func(s spread) float64 { return s.Min })
}

func (r row) most(unit string) string {
	return r.show(unit, func(s spread) float64 { return s.Max })
}

// show is empty for what the row does not measure.
func (r row) show(unit string, of func(spread) float64) string {
	s, ok := r.Figures[unit]
	if !ok {
		return ""
	}
	return figure(of(s))
}

// figure keeps three or four digits of a number.
func figure(v float64) string {
	switch {
	case v == 0 || v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 100:
		return fmt.Sprintf("%.1f", v)
	case v >= 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func machine() map[string]string {
	return map[string]string{
		"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		"gomaxprocs": fmt.Sprint(runtime.GOMAXPROCS(0)),
		"cpu":        "unknown processor", "postgresql": "not measured",
	}
}

// load returns the load averages of 1, 5 and 15 minutes, which Linux tells.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
