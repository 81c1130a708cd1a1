package main

import (
	"fmt"
	"strings"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// markdown is the report for readers.
func (r *report) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# One post to %s followers", proof.Count(r.N))
	line("")
	line("Written on %s by the following command, in the folder bench; do not edit.", r.Date)
	line("")
	line("    %s", r.Command)
	line("")
	m := r.Machine
	line("%s, %s cores, %s of memory, load average %s before; %s/%s, %s,",
		m["cpu"], m["cores"], m["memory"], m["load"], m["os"], m["arch"], m["go"])
	line("Redis %s, PostgreSQL %s. The worker, both servers and the program that watches them share the machine.",
		m["redis"], m["postgres"])
	line("")
	line("![deliveries and memory of the worker over time](%s.png)", name)
	line("")
	line("The author's followers are rows in PostgreSQL, read %s at a time by their key. Each has a warm feed in",
		proof.Count(int64(r.PageSize)))
	line("Redis of %d entries, %d bytes with its key. One was filled through feedcache, and Redis copied it for the", r.Entries, r.FeedSize)
	line("others. A worker is a process of its own that calls `feedcache.Fanout.Run` and stores its cursor in PostgreSQL,")
	line("which syncs it to the disk, after each page. The first post goes the whole way with one worker. The worker of the")
	line("second post gets a SIGKILL when half of the feeds have it; another one starts at once, at the stored cursor.")
	line("")
	line("| | last delivery after | deliveries/s | pushes | repeated | CPU per delivery: worker | Redis |")
	line("|---|--:|--:|--:|--:|--:|--:|")
	for _, d := range r.Runs {
		line("| %s | **%.2f s** | %s | %s | %s | %.2f µs | %.2f µs |", d.Name, d.Seconds, proof.Count(int64(d.Rate)),
			proof.Count(d.Pushes), proof.Count(d.Repeated), d.WorkerMicros, d.RedisMicros)
	}
	line("")
	line("The time is from the start of the first process to the end of the last. Pushes are those that Redis counted.")
	line("A worker that takes over repeats what came after the stored cursor; a feed shows an entry once, however often")
	line("it was pushed.")
	line("")
	for _, d := range r.Runs {
		if k := d.Kill; k != nil {
			line("The worker was killed after %.2f s and %s pushes, with the cursor behind %s followers. The other one's first",
				k.Seconds, proof.Count(k.Pushes), proof.Count(k.Saved))
			line("push was seen %.0f ms later.", 1000*k.Pause)
			line("")
		}
	}
	line("## Memory of the worker")
	line("")
	line("| | at a fifth of the feeds, MB | at most | at the end | at most, of the first | wanted | |")
	line("|---|--:|--:|--:|--:|--:|---|")
	for _, d := range r.Runs {
		verdict := "miss"
		if d.flat() {
			verdict = "pass"
		}
		line("| %s | %s | %s | %s | %.2f | %.2f or less | %s |", d.Name, mb(d.FifthRSS), mb(d.MostRSS), mb(d.LastRSS),
			float64(d.MostRSS)/float64(d.FifthRSS), mostGrowth, verdict)
	}
	line("")
	line("RSS of the process, every 10 ms. It has two pages of followers in memory, and what it sends of one.")
	line("")
	line("## Feeds")
	line("")
	line("After each run every feed is read through feedcache and must have exactly the posts that were made, each once,")
	line("newest first. Its Source fails, so a feed that had become cold would be seen.")
	line("")
	line("| | feeds read | wrong |")
	line("|---|--:|--:|")
	for _, d := range r.Runs {
		line("| %s | %s | %s |", d.Name, proof.Count(d.Checked), proof.Count(d.Wrong))
	}
	return b.String()
}
