package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// A progress is a bar on a terminal, and one line at the end anywhere else. It
// is safe for concurrent use.
type progress struct {
	out      io.Writer
	label    string
	total    int
	terminal bool
	began    time.Time

	mu sync.Mutex
	n  int
}

func newProgress(out io.Writer, label string, total int) *progress {
	p := &progress{out: out, label: label, total: total, began: time.Now()}
	if f, ok := out.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if p.terminal {
		const width = 30
		full := width * p.n / p.total
		fmt.Fprintf(p.out, "\r  %-10s [%s%s] %3d %%", p.label, strings.Repeat("#", full), strings.Repeat(".", width-full), 100*p.n/p.total)
	}
}

// done ends the line; when not all was done it says how far it came.
func (p *progress) done(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.out, "\r\033[K")
	}
	if p.n < p.total {
		fmt.Fprintf(p.out, "  %-10s stopped at %d %%\n", p.label, 100*p.n/p.total)
		return
	}
	fmt.Fprintf(p.out, "  %-10s done after %5.1f s   %s\n", p.label, time.Since(p.began).Seconds(), what)
}
