package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A load is what a run of pgbench asks for.
type load struct {
	mode      string
	clients   int
	secs      int
	reconnect bool
}

func (l load) args() []string {
	args := []string{
		"--select-only", "--no-vacuum", "--jobs=1", "--log", "--log-prefix=run",
		"--protocol=" + l.mode, "--client=" + strconv.Itoa(l.clients), "--time=" + strconv.Itoa(l.secs),
	}
	if l.reconnect {
		args = append(args, "--connect")
	}
	return args
}

// A window is a part of a run.
type window struct {
	from, to time.Time
	cpu      time.Duration // of the pooler
	rss      int64         // of it, at the end
}

// pgbench runs it against a port, behind which is the pooler, or PostgreSQL if
// that is nil. Its figures but tps are of the time from the first transactions
// to shortly before the end, so that no login is in them.
func (s *scene) pgbench(ctx context.Context, l load, port int, p *pooler) (figures, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(l.secs)*time.Second+time.Minute)
	defer cancel()
	cmd := s.command(ctx, port, l.args()...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	log := filepath.Join(cmd.Dir, "run."+strconv.Itoa(cmd.Process.Pid))
	defer os.Remove(log)
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failed = cmd.Wait()
	}()
	end := begin.Add(time.Duration(l.secs)*time.Second - 100*time.Millisecond)
	w, err := watch(log, end, p, ended)
	if err != nil {
		cancel()
	}
	<-ended
	if err = errors.Join(err, failed); err != nil {
		err = fmt.Errorf("pgbench: %w\n%s", err, out.Bytes()[max(0, out.Len()-2000):])
		if p != nil {
			err = p.trouble(err)
		}
		return nil, err
	}
	tps, err := readTPS(out.String())
	if err != nil {
		return nil, err
	}
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	latencies, err := readLog(f, w.from, w.to)
	if err != nil {
		return nil, fmt.Errorf("the log of pgbench: %w", err)
	}
	found := quantiles(latencies)
	found["tps"] = tps
	if p != nil {
		found["cpu_us"] = float64(w.cpu.Microseconds()) / float64(len(latencies))
		found["rss_mb"] = float64(w.rss) / 1e6
	}
	return found, nil
}

// command returns one that runs pgbench in the folder of the servers.
func (s *scene) command(ctx context.Context, port int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.pgbenchPath, append(args,
		"--host=127.0.0.1", "--port="+strconv.Itoa(port), "--username=postgres", "postgres")...)
	cmd.Dir = s.host.Dir()
	cmd.Env = append(os.Environ(), "PGSSLMODE=disable", "LC_ALL=C")
	return cmd
}

// watch takes the pooler's figures when the log begins, which is after the
// logins, and at the given time.
func watch(log string, to time.Time, p *pooler, ended <-chan struct{}) (window, error) {
	var w window
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for begun := false; !begun; {
		select {
		case <-ended:
			return w, errEarly
		case <-tick.C:
		}
		info, err := os.Stat(log)
		begun = err == nil && info.Size() > 0
		if !begun && time.Until(to) < 0 {
			return w, errors.New("no transaction in all the time")
		}
	}
	before, err := p.cpu()
	if err != nil {
		return w, err
	}
	w.from = time.Now()
	pause := time.NewTimer(time.Until(to))
	defer pause.Stop()
	select {
	case <-ended:
		return w, errEarly
	case <-pause.C:
	}
	after, err1 := p.cpu()
	rss, err2 := p.rss()
	w.to, w.cpu, w.rss = time.Now(), after-before, rss
	return w, errors.Join(err1, err2)
}

var errEarly = errors.New("ended too early")

var (
	tpsLine    = regexp.MustCompile(`(?m)^tps = ([0-9.]+) `)
	failedLine = regexp.MustCompile(`(?m)^number of failed transactions: ([0-9]+) `)
)

// readTPS reads what pgbench prints at its end.
func readTPS(text string) (float64, error) {
	if failed := failedLine.FindStringSubmatch(text); failed == nil || failed[1] != "0" {
		return 0, fmt.Errorf("pgbench had failed transactions:\n%s", text)
	}
	match := tpsLine.FindStringSubmatch(text)
	if match == nil {
		return 0, fmt.Errorf("pgbench printed no tps:\n%s", text)
	}
	return strconv.ParseFloat(match[1], 64)
}

// readLog returns the latencies, in microseconds, of the transactions that ended
// in the window. A line is "client number latency script seconds microseconds".
func readLog(r io.Reader, from, to time.Time) ([]float64, error) {
	var latencies []float64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			return nil, fmt.Errorf("unknown line %q", lines.Text())
		}
		latency, err1 := strconv.ParseFloat(fields[2], 64)
		seconds, err2 := strconv.ParseInt(fields[4], 10, 64)
		micros, err3 := strconv.ParseInt(fields[5], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("unknown line %q: %w", lines.Text(), err)
		}
		if at := time.UnixMicro(seconds*1e6 + micros); at.After(from) && !at.After(to) {
			latencies = append(latencies, latency)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(latencies) == 0 {
		return nil, errors.New("no transaction in the window")
	}
	return latencies, nil
}

// quantiles sorts latencies and returns the two that the report shows.
func quantiles(latencies []float64) figures {
	slices.Sort(latencies)
	at := func(share float64) float64 { return latencies[int(share*float64(len(latencies)-1))] }
	return figures{"p50_us": at(0.5), "p99_us": at(0.99)}
}
