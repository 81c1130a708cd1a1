//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"sync"

	"github.com/shardgram/shardgram/pgbounce"
)

// logs are where the log goes: standard error, a file, syslog. It is safe for
// concurrent use.
type logs struct {
	level  slog.LevelVar
	stderr io.Writer // nil if quiet

	mu     sync.Mutex
	file   *os.File
	system *syslog.Writer
}

func openLogs(o options, f *pgbounce.File, stderr io.Writer) (*logs, error) {
	l := &logs{}
	if !o.quiet {
		l.stderr = stderr
	}
	return l, l.reopen(o, f)
}

// reopen writes to what the file names from now on, even if it has the name of
// what it wrote to: that may have been moved away. On an error all stays.
func (l *logs) reopen(o options, f *pgbounce.File) error {
	level := slog.LevelInfo
	if o.verbose+f.Verbose > 0 {
		level = slog.LevelDebug
	}
	l.level.Set(level)
	var file *os.File
	var system *syslog.Writer
	var err error
	if f.LogFile != "" {
		if file, err = os.OpenFile(f.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644); err != nil {
			return fmt.Errorf("logfile: %w", err)
		}
	}
	if f.Syslog {
		if system, err = syslog.New(facilities[f.SyslogFacility]|syslog.LOG_INFO, f.SyslogIdent); err != nil {
			return errors.Join(fmt.Errorf("syslog: %w", err), closeIf(file))
		}
	}
	l.mu.Lock()
	old, oldSystem := l.file, l.system
	l.file, l.system = file, system
	l.mu.Unlock()
	if oldSystem != nil {
		_ = oldSystem.Close()
	}
	return closeIf(old)
}

func closeIf(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: &l.level}))
}

// Write writes a line to all. One that fails does not keep it from the others.
func (l *logs) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	write := func(w io.Writer) {
		_, failed := w.Write(line)
		err = errors.Join(err, failed)
	}
	if l.stderr != nil {
		write(l.stderr)
	}
	if l.file != nil {
		write(l.file)
	}
	if l.system != nil {
		write(l.system)
	}
	return len(line), err
}

func (l *logs) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = closeIf(l.file)
	if l.system != nil {
		_ = l.system.Close()
	}
	l.file, l.system = nil, nil
}

var facilities = map[string]syslog.Priority{
	"auth": syslog.LOG_AUTH, "authpriv": syslog.LOG_AUTHPRIV, "daemon": syslog.LOG_DAEMON, "user": syslog.LOG_USER,
	"local0": syslog.LOG_LOCAL0, "local1": syslog.LOG_LOCAL1, "local2": syslog.LOG_LOCAL2, "local3": syslog.LOG_LOCAL3,
	"local4": syslog.LOG_LOCAL4, "local5": syslog.LOG_LOCAL5, "local6": syslog.LOG_LOCAL6, "local7": syslog.LOG_LOCAL7,
}
