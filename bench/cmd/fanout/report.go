package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// A report is all that was found.
type report struct {
	Date     string            `json:"date"`
	Command  string            `json:"command"`
	Machine  map[string]string `json:"machine"`
	N        int64             `json:"followers"`
	Entries  int               `json:"entries"`
	PageSize int               `json:"page_size"`
	FeedSize int64             `json:"bytes_per_feed"` // with its key
	Runs     []delivery        `json:"runs"`
}

func newReport(cfg config, s *scene) *report {
	r := &report{
		Date: time.Now().UTC().Format(time.DateOnly), Command: cfg.command, Machine: machine(),
		N: cfg.n, Entries: cfg.entries, PageSize: cfg.page, FeedSize: s.bytes,
	}
	r.Machine["postgres"] = s.postgres
	return r
}

// mostGrowth is how much larger a worker may be than it was when it had
// delivered a fifth: more would mean that it grows with the followers.
const mostGrowth = 1.25

// flat reports whether the worker's memory passed.
func (d *delivery) flat() bool { return float64(d.MostRSS) <= mostGrowth*float64(d.FifthRSS) }

// trouble returns what makes the run a failure.
func (r *report) trouble() error {
	var errs []error
	for _, done := range r.Runs {
		if done.Wrong > 0 || done.Checked != r.N {
			errs = append(errs, fmt.Errorf("%s: %d of %d feeds that were read are wrong, of %d",
				done.Name, done.Wrong, done.Checked, r.N))
		}
		if done.Repeated < 0 {
			errs = append(errs, fmt.Errorf("%s: %d pushes to %d feeds", done.Name, done.Pushes, r.N))
		}
	}
	return errors.Join(errs...)
}

// name is that of the report and its charts, without the ending.
const name = "fanout-1m"

func (r *report) write(cfg config) error {
	if err := os.MkdirAll(cfg.out, 0o755); err != nil {
		return err
	}
	file := filepath.Join(cfg.out, name)
	err := errors.Join(
		os.WriteFile(file+".md", []byte(r.markdown()), 0o644),
		r.chart(file+".png", file+".svg"),
	)
	if err != nil || cfg.json == "" {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(cfg.json, append(text, '\n'), 0o644)
}

// machine returns what the figures depend on, as far as Linux tells it.
func machine() map[string]string {
	m := map[string]string{
		"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		"cores": fmt.Sprint(runtime.NumCPU()), "cpu": "unknown processor", "memory": "unknown", "load": "unknown",
		"redis": version("redis-server"),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m["cpu"] = strings.TrimSpace(value)
			}
		}
	}
	if total, err := procKilobytes("/proc/meminfo", "MemTotal"); err == nil {
		m["memory"] = gb(total)
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m["load"], _, _ = strings.Cut(string(text), " ")
	}
	return m
}

// version runs a program that tells its version, such as "Redis server
// v=7.0.15 sha=...".
func version(program string) string {
	text, err := exec.Command(program, "--version").Output()
	if err != nil {
		return "unknown"
	}
	for word := range strings.FieldsSeq(string(text)) {
		if number, ok := strings.CutPrefix(word, "v="); ok {
			return number
		}
	}
	return "unknown"
}

// procKilobytes reads a line "name:   123 kB" of a file below /proc, in bytes.
func procKilobytes(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

// gb writes bytes as "1.05 GB".
func gb(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/1e9) }

// mb writes bytes as "9.6".
func mb(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/1e6) }

// count writes 3000000 as "3,000,000".
func count(n int64) string {
	text := fmt.Sprint(n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}
