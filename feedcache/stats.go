package feedcache

import (
	"fmt"
	"sync/atomic"
	"time"
)

// EventKind says what an [Event] is about.
type EventKind int

const (
	// Delivered: N warm feeds took a push or a removal.
	Delivered EventKind = iota

	// SkippedCold: N feeds were not there to be pushed to.
	SkippedCold

	// Rebuild: a cold feed was filled with N IDs.
	Rebuild

	// Compaction: a feed with many operations was rewritten.
	Compaction

	// Edited: a feed was changed by [Feeds.Edit] and has N IDs, or was dropped
	// to that end.
	Edited

	// Wait: a reader found a feed that another one is filling, and looks again
	// in a moment.
	Wait

	// SourceRead: a call of the Source returned N IDs, or Err.
	SourceRead

	// ShortPage: Keep let only N IDs through before the page gave up.
	ShortPage

	// RedisFailure: a page was made without Redis, because of Err.
	RedisFailure

	kinds int = iota
)

// String returns the kind in lower case, as a label of a metric.
func (k EventKind) String() string {
	if k < 0 || int(k) >= kinds {
		return fmt.Sprintf("EventKind(%d)", int(k))
	}
	return [...]string{
		"delivered", "skipped_cold", "rebuild", "compaction", "edited", "wait", "source_read", "short_page", "redis_failure",
	}[k]
}

// An Event is what [Config].Observe is told.
type Event struct {
	Kind  EventKind
	Owner int64 // 0 where it is about many
	N     int
	Took  time.Duration // of a Rebuild and a SourceRead
	Err   error         // of a RedisFailure and a SourceRead
}

// Stats counts what the feeds of one [Feeds] have done since New.
type Stats struct {
	Delivered     int64 // feeds that took a push or a removal
	SkippedCold   int64 // feeds that were not there to be pushed to
	Rebuilds      int64 // cold feeds that were filled
	Compactions   int64 // feeds rewritten because they had many operations
	Edits         int64 // feeds changed by Edit
	Waits         int64 // waits for another reader's fill, up to six for a page
	SourceReads   int64 // calls of the Source, for fills and below the floor
	SourceErrors  int64 // calls of the Source that failed
	ShortPages    int64 // pages that Keep left short
	RedisFailures int64 // looks at feeds that failed because of Redis
}

// counters are the events so far, the sum of N where it counts feeds.
type counters struct {
	of           [kinds]atomic.Int64
	sourceErrors atomic.Int64
}

// Stats returns the counters.
func (f *Feeds) Stats() Stats {
	of := func(k EventKind) int64 { return f.counters.of[k].Load() }
	return Stats{
		Delivered: of(Delivered), SkippedCold: of(SkippedCold), Rebuilds: of(Rebuild), Compactions: of(Compaction),
		Edits: of(Edited), Waits: of(Wait), SourceReads: of(SourceRead), SourceErrors: f.counters.sourceErrors.Load(),
		ShortPages: of(ShortPage), RedisFailures: of(RedisFailure),
	}
}

// note counts an event and tells the observer.
func (f *Feeds) note(e Event) {
	n := int64(1)
	if e.Kind == Delivered || e.Kind == SkippedCold {
		if n = int64(e.N); n == 0 {
			return
		}
	}
	f.counters.of[e.Kind].Add(n)
	if e.Kind == SourceRead && e.Err != nil {
		f.counters.sourceErrors.Add(1)
	}
	if f.cfg.Observe != nil {
		f.cfg.Observe(e)
	}
}
