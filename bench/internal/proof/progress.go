package proof

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// Progress tells on a terminal in one line, and elsewhere in a line every five
// seconds, how far a phase is.
type Progress struct {
	w        io.Writer
	terminal bool
	what     string

	mu    sync.Mutex // what follows is also used by the ticker of a silent phase
	shown time.Time
	begin time.Time
	phase string
}

// NewProgress returns one that writes to w.
func NewProgress(w io.Writer) *Progress {
	p := &Progress{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// Title says what the phases to come are of.
func (p *Progress) Title(what string) { p.what = what }

// Start begins a phase, which is shown when it lasts.
func (p *Progress) Start(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.begin, p.shown = phase, time.Now(), time.Now()
}

// At shows that so many of all are done.
func (p *Progress) At(done, all int64) {
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

// During runs a phase that cannot tell how far it is.
func (p *Progress) During(phase string, run func() error) error {
	p.Start(phase)
	defer p.Clear()
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
				p.At(0, 0)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	return run()
}

// Clear removes the line from a terminal.
func (p *Progress) Clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
