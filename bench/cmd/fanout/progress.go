package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// progress tells on a terminal in one line, and elsewhere in a line every five
// seconds, how far a phase is.
type progress struct {
	w        io.Writer
	terminal bool
	what     string

	mu    sync.Mutex // what follows is also used by the ticker of a silent phase
	shown time.Time
	begin time.Time
	phase string
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) title(what string) { p.what = what }

// start begins a phase, which is shown when it lasts.
func (p *progress) start(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.begin, p.shown = phase, time.Now(), time.Now()
}

// at shows that so many of all are done.
func (p *progress) at(done, all int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pause := 5 * time.Second
	if p.terminal {
		pause = 200 * time.Millisecond
	}
	if time.Since(p.shown) < pause {
		return
	}
	p.shown = time.Now()
	spent := time.Since(p.begin)
	text := fmt.Sprintf("%s: %s", p.what, p.phase)
	if all > 0 && done > 0 {
		share := float64(done) / float64(all)
		left := time.Duration(float64(spent) * (1 - share) / share).Round(time.Second)
		text += fmt.Sprintf(" [%-20s] %3.0f %%, %.0f/s, %s left",
			strings.Repeat("#", int(20*min(share, 1))), 100*share, float64(done)/spent.Seconds(), left)
	} else {
		text += fmt.Sprintf(", %s", spent.Round(time.Second))
	}
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K"+text)
	} else {
		fmt.Fprintln(p.w, text)
	}
}

// during runs a phase that cannot tell how far it is.
func (p *progress) during(phase string, run func() error) error {
	p.start(phase)
	defer p.clear()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				p.at(0, 0)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	return run()
}

// clear removes the line from a terminal.
func (p *progress) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
