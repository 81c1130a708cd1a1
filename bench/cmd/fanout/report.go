package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardgram/shardgram/bench/internal/proof"
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
		Date: time.Now().UTC().Format(time.DateOnly), Command: cfg.command, Machine: proof.Machine(),
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
	return proof.Write(cfg.out, name, r.markdown(), r.chart, cfg.json, r)
}

// mb writes bytes as "9.6".
func mb(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/1e6) }
