package feedcache

import (
	"context"
	"time"
)

// What the tests of a feed's bytes need to see.
type View = view

var (
	Parse      = parse
	FromSource = fromSource
	NewTag     = newTag
)

const (
	Building    = building
	Ready       = ready
	Top         = top
	MaxExamined = maxExamined
	MaxEdits    = maxEdits
)

func (v view) Floor() int64                              { return v.floor }
func (v view) Bottom() int64                             { return v.bottom }
func (v view) HeadFloor() int64                          { return v.headFloor }
func (v view) Mark() int64                               { return v.seen }
func (v view) Tag() string                               { return v.tag }
func (v view) Server() string                            { return v.server }
func (v view) State() byte                               { return v.state() }
func (v view) Len() int                                  { return len(v.entries) }
func (v view) Elements() int                             { return v.seenLen }
func (v view) Deep() bool                                { return v.deep }
func (v view) Whole() bool                               { return v.whole }
func (v view) Trim(n int) View                           { return v.trim(n) }
func (v view) Below(before int64, n int) ([]int64, bool) { return v.below(before, n) }
func (v view) Unseen() int                               { return v.unseen() }

// Encode returns the elements of the list at index 0 and 1.
func (v view) Encode(n int) []string {
	rest, head := v.encode(n)
	return []string{string(rest), string(head)}
}

// As returns the view under a tag and a server, as a feed has them.
func (v view) As(tag, server string) View {
	v.tag, v.server = tag, server
	return v
}

// Slack is how many operations a feed may have before it is compacted.
func (f *Feeds) Slack() int { return f.slack() }

// HeadIDs is how many IDs the head of a feed has after a fill.
func (f *Feeds) HeadIDs() int { return f.headIDs() }

// Incarnation is what the server calls itself now.
func (f *Feeds) Incarnation(ctx context.Context) (string, error) {
	return f.run(ctx, serverScript, []call{{key: "any"}})[0].Text()
}

// HistogramOf counts durations.
func HistogramOf(durations ...time.Duration) Histogram {
	var h histogram
	for _, d := range durations {
		h.add(d, 1)
	}
	return h.snapshot()
}

type Breaker = breaker

func (b *breaker) Open(addr string, pause time.Duration) bool { return b.open(addr, pause) }
func (b *breaker) Note(addr string, begin time.Time, err error, pause time.Duration) {
	b.note(addr, begin, err, pause)
}
