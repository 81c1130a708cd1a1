package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// A report is all that was found.
type report struct {
	Date    string            `json:"date"`
	Command string            `json:"command"`
	Machine map[string]string `json:"machine"`
	N       int64             `json:"n"`
	Peers   int64             `json:"peers"`
	Results []result          `json:"results"`
	Bars    []bar             `json:"bars"`
	Client  int64             `json:"client_peak_rss_bytes"`
}

// A bar sets a map of hashkv beside what we want, what was published in 2011,
// and the least that is possible. All but Keys are bytes per key.
type bar struct {
	Name      string  `json:"name"`
	Keys      int64   `json:"keys"`
	Measured  float64 `json:"measured"`
	Most      float64 `json:"most"`
	Published float64 `json:"published"`
	Least     float64 `json:"least"`
	Passed    bool    `json:"passed"`
}

// What Instagram published for 300 million pairs, and for a million in
// memcached.
const (
	publishedStrings   = 21e9 / 300e6
	publishedHashes    = 5e9 / 300e6
	publishedMemcached = 52e6 / 1e6
)

// What we want: 1.00 GB for 300 million dense pairs, 4.2 GB for sparse ones.
const (
	mostDense  = 1.00e9 / 300e6
	mostSparse = 4.2e9 / 300e6
)

func newReport(cfg config) *report {
	return &report{
		Date: time.Now().UTC().Format(time.DateOnly), Command: cfg.command,
		Machine: proof.Machine(), N: cfg.n, Peers: cfg.peers,
	}
}

// finish draws the conclusions from the results.
func (r *report) finish() {
	for _, done := range r.Results {
		if done.Keys != r.N {
			continue
		}
		b := bar{Name: done.Name, Keys: done.Keys, Measured: done.BytesPerKey}
		switch done.Name {
		case "hashkv dense":
			b.Most, b.Published, b.Least = mostDense, publishedHashes, leastDense()
		case "hashkv sparse":
			b.Most, b.Published, b.Least = mostSparse, publishedStrings, leastSparse(r.N)
		default:
			continue
		}
		b.Passed = b.Measured <= b.Most
		r.Bars = append(r.Bars, b)
	}
	r.Client, _ = proof.Kilobytes("/proc/self/status", "VmHWM") // 0 where it is not known
}

// trouble returns what makes the run a failure.
func (r *report) trouble() error {
	var errs []error
	for _, done := range r.Results {
		if done.Wrong > 0 || done.Missing > 0 {
			errs = append(errs, fmt.Errorf("%s with %d keys: %d answers of %d are wrong and %d are missing",
				done.Name, done.Keys, done.Wrong, done.Checked, done.Missing))
		}
		if done.Stats == nil {
			continue
		}
		for encoding, buckets := range done.Stats.Encodings {
			if encoding != "listpack" && encoding != "raw" {
				errs = append(errs, fmt.Errorf("%s with %d keys: %d buckets of %d are in the encoding %s",
					done.Name, done.Keys, buckets, done.Stats.Sampled, encoding))
			}
		}
	}
	return errors.Join(errs...)
}

// name is that of the report and its charts, without the ending.
const name = "hashkv-300m"

func (r *report) write(cfg config) error {
	return proof.Write(cfg.out, name, r.markdown(), r.chart, cfg.json, r)
}
