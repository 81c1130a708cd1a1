package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// markdown is the report for readers.
func (r *report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# hashkv with %s pairs", proof.Count(r.N))
	line("")
	line("Written by `make proof-300m` on %s; do not edit. The command, in the folder bench:", r.Date)
	line("")
	line("    %s", r.Command)
	line("")
	m := r.Machine
	line("%s, %s cores, %s of memory; %s/%s, %s, Redis %s, memcached %s. Client and servers share the",
		m["cpu"], m["cores"], m["memory"], m["os"], m["arch"], m["go"], m["redis"], m["memcached"])
	line("machine. The client took %s at its peak.", proof.GB(r.Client))
	line("")
	line("![bytes per key of each layout](%s.png)", name)
	line("")
	line("A pair is a photo and its owner, a random number of 24 bits. Dense photos are numbered 0, 1, 2, ...;")
	line("sparse ones have IDs of idgen, 105 ms apart, on 8,192 shards. A row's bytes are the growth of")
	line("used_memory over the empty server, without the buffers of connections, divided by its keys; GB are 10^9")
	line("bytes.")
	line("")
	r.bars(line)
	line("## Memory")
	line("")
	line("| layout | keys | limit | bytes/key | used_memory, MB | RSS, MB | after a restart | RDB, MB | GB at 300M |")
	line("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, d := range r.Results {
		line("| %s | %s | %s | %.2f | %s | %s | %s | %s | %.2f |", d.Name, proof.Count(d.Keys), or(d.Limit, "-"), d.BytesPerKey,
			mb(d.Used), mb(d.RSS), has(d.RSSAgain > 0, mb(d.RSSAgain)), has(d.RDB > 0, mb(d.RDB)), d.BytesPerKey*300e6/1e9)
	}
	line("")
	line("`limit` is hash-max-listpack-entries, 512 on a stock server; `id/1000` is the layout of Instagram's post, which")
	line("raised it. `used_memory` of memcached is its slabs and its hash table. The last column multiplies bytes/key; a")
	line("layout of many Redis keys grows worse than that, with the server's table of keys. `RSS` is what the system")
	line("counts: after a load it has what the allocator keeps of entries that outgrew their place, which a restart or")
	line("activedefrag gives back.")
	line("")
	line("| layout | a pair |")
	line("|---|---|")
	shown := map[string]bool{}
	for _, d := range r.Results {
		if !shown[d.Name] {
			line("| %s | `%s` |", d.Name, d.Shape)
		}
		shown[d.Name] = true
	}
	line("")
	line("## Time")
	line("")
	line("| layout | keys | load | pairs/s | SAVE | restart |")
	line("|---|--:|--:|--:|--:|--:|")
	for _, d := range r.Results {
		line("| %s | %s | %.1f s | %s | %s | %s |", d.Name, proof.Count(d.Keys), d.LoadSeconds, proof.Count(int64(d.LoadRate)),
			has(d.RDB > 0, fmt.Sprintf("%.2f s", d.SaveSeconds)), has(d.RDB > 0, fmt.Sprintf("%.2f s", d.RestartSeconds)))
	}
	line("")
	line("Random reads of keys that are there, over loopback:")
	line("")
	line("| layout | keys | Get/s | p50 | p99 | Get/s, 8 goroutines | keys/s, GetMulti of 100 | command | server's CPU |")
	line("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, d := range r.Results {
		line("| %s | %s | %s | %.0f µs | %.0f µs | %s | %s | %s | %.1f µs |", d.Name, proof.Count(d.Keys), proof.Count(int64(d.Get.Rate)),
			d.Get.P50, d.Get.P99, proof.Count(int64(d.Get8.Rate)), proof.Count(int64(d.GetMulti.Rate)),
			has(d.CommandMicros > 0, fmt.Sprintf("%.2f µs", d.CommandMicros)), d.ProcessMicros)
	}
	line("")
	line("`command` is what the server spends in the command of one Get, by its commandstats; `server's CPU` is its")
	line("whole process per Get, most of it for the network. Layouts are measured one after another, and a single call")
	line("over loopback takes several times as long if client and server happen to run on two cores and not on one: rows")
	line("of Get/s that differ by less are not told apart by this table. BenchmarkByTurns of hashkv, which changes layouts")
	line("every 50 ms, compares them; `command` depends on it least.")
	line("")
	r.answers(line)
	return b.String()
}

// bars writes the maps of n keys beside what they are measured against.
func (r *report) bars(line func(string, ...any)) {
	total := func(keys int64, perKey float64) string { return fmt.Sprintf("%.2f GB", float64(keys)*perKey/1e9) }
	if r.N < 100_000_000 {
		total = func(keys int64, perKey float64) string { return fmt.Sprintf("%.2f MB", float64(keys)*perKey/1e6) }
	}
	line("| %s pairs | used_memory | wanted | | Instagram, 2011 | least possible | times the least |", proof.Count(r.N))
	line("|---|--:|--:|---|--:|--:|--:|")
	for _, b := range r.Bars {
		verdict := "miss"
		if b.Passed {
			verdict = "pass"
		}
		line("| %s | **%s** | %s | %s | %s | %s | %.2f |", b.Name, total(b.Keys, b.Measured), total(b.Keys, b.Most), verdict,
			total(b.Keys, b.Published), total(b.Keys, b.Least), b.Measured/b.Least)
	}
	line("")
	line("How to read it: a map passes if it takes no more than what is wanted. Instagram published 5 GB for 300")
	line("million pairs in hashes under id/1000, which suit dense numbers, and 21 GB for string keys, which is what")
	line("sparse IDs leave; here they are scaled to the number of pairs. Nothing that answers exactly can take less")
	line("than the least: 24 bits for a value, and for a sparse key its share of the logarithm of all sets of so many")
	line("IDs.")
	line("")
}

// answers writes how many were checked, and how the maps lie in Redis.
func (r *report) answers(line func(string, ...any)) {
	var checked, wrong, missing int64
	for _, d := range r.Results {
		checked, wrong, missing = checked+d.Checked, wrong+d.Wrong, missing+d.Missing
	}
	line("## Answers")
	line("")
	line("%s answers were checked, in all phases and after each restart: %d were wrong, %d were missing.", proof.Count(checked), wrong, missing)
	line("")
	line("| layout | keys | buckets | sampled | entries in a bucket: min | mean | max | encodings |")
	line("|---|--:|--:|--:|--:|--:|--:|---|")
	for _, d := range r.Results {
		if s := d.Stats; s != nil {
			line("| %s | %s | %s | %s | %d | %.1f | %d | %s |", d.Name, proof.Count(d.Keys), proof.Count(s.Buckets), proof.Count(int64(s.Sampled)),
				s.Fill.Min, s.Fill.Mean, s.Fill.Max, strings.Join(slices.Sorted(maps.Keys(s.Encodings)), ", "))
		}
	}
}

// mb writes bytes as "9.6", in millions.
func mb(bytes int64) string {
	return proof.Count(bytes/1e6) + fmt.Sprintf(".%d", bytes/1e5%10)
}

func or(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

func has(there bool, text string) string {
	if !there {
		return "-"
	}
	return text
}
