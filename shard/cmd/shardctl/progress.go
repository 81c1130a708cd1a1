package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/shardgram/shardgram/shard"
)

// bars show how far each node is: on a terminal a bar for each, which moves, and
// elsewhere a line for each quarter. They are used by one goroutine at a time.
type bars struct {
	w     io.Writer
	live  bool
	nodes []shard.Progress
	drawn int // lines
	last  time.Time
}

func newBars(w io.Writer, live bool) *bars { return &bars{w: w, live: live} }

func (b *bars) tell(p shard.Progress) {
	i := slices.IndexFunc(b.nodes, func(n shard.Progress) bool { return n.Node == p.Node })
	if i < 0 {
		i = len(b.nodes)
		b.nodes = append(b.nodes, shard.Progress{Node: p.Node})
	}
	before := b.nodes[i]
	b.nodes[i] = p
	switch {
	case b.live && (p.Done == p.Total || time.Since(b.last) > 50*time.Millisecond):
		b.draw()
	case !b.live && p.Done*4/p.Total > before.Done*4/p.Total:
		fmt.Fprintf(b.w, "%s: %d of %d shards%s\n", p.Node, p.Done, p.Total, trouble(p))
	}
}

func (b *bars) draw() {
	var text strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", b.drawn) // to where the first bar is
	}
	wide := 0
	for _, p := range b.nodes {
		wide = max(wide, len(p.Node))
	}
	const width = 30
	for _, p := range b.nodes {
		done := bar(float64(p.Done)/float64(p.Total), width)
		rest := strings.Repeat("░", width-len([]rune(done)))
		fmt.Fprintf(&text, "\r\x1b[K%-*s %s%s %d/%d%s\n", wide, p.Node, done, rest, p.Done, p.Total, trouble(p))
	}
	b.drawn, b.last = len(b.nodes), time.Now()
	fmt.Fprint(b.w, text.String())
}

func trouble(p shard.Progress) string {
	if p.Failed == 0 {
		return ""
	}
	return fmt.Sprintf(", %d failed", p.Failed)
}
