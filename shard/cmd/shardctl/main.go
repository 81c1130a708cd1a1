// Shardctl sets up, looks at and migrates the shards of a cluster whose catalog is
// in PostgreSQL. "shardctl help" tells what it can do; package shard, what shards
// are.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// The codes that run returns.
const (
	ok        = 0
	failed    = 1
	wrongUse  = 2
	noCatalog = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// A command is what the first argument says.
type command struct {
	name    string
	short   string
	help    string
	changes bool // it can be stopped half-way
	flags   func(*call)
	run     func(context.Context, *call) error
}

var commands = []*command{&initCommand, &statusCommand, &routeCommand, &migrateCommand, &driftCommand, &hotCommand}

// errDiffers is returned by a command that has said all there is to say.
var errDiffers = errors.New("not as it should be")

// catalogError is one of reading the catalog.
type catalogError struct{ err error }

func (e *catalogError) Error() string { return e.err.Error() }
func (e *catalogError) Unwrap() error { return e.err }

// run runs a command and returns the code to exit with. When ctx ends, it ends
// within a second, whatever the servers do.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, overview())
		return wrongUse
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		return help(args[1:], stdout, stderr)
	}
	cmd := find(args[0])
	if cmd == nil {
		// It is not repeated: it may be a DSN that came first by mistake.
		fmt.Fprintln(stderr, `shardctl: there is no such command; "shardctl help" lists them. Flags come after the command`)
		return wrongUse
	}
	c := &call{stdout: stdout, progress: newBars(stderr, isTerminal(stderr))}
	if err := c.parse(cmd, args[1:]); err != nil {
		if errors.Is(err, errHelp) {
			fmt.Fprint(stdout, cmd.help)
			return ok
		}
		return verdict(ctx, cmd, err, stderr)
	}

	return verdict(ctx, cmd, cmd.run(ctx, c), stderr)
}

// verdict says how a command ended.
func verdict(ctx context.Context, cmd *command, err error, stderr io.Writer) int {
	say := func(text string) { fmt.Fprintf(stderr, "shardctl %s: %s\n", cmd.name, text) }
	if err == nil {
		return ok
	}
	if ctx.Err() != nil {
		if cmd.changes {
			say("interrupted. What is done stays; run it again to go on.")
		} else {
			say("interrupted. It has changed nothing and can be run again.")
		}
		return failed
	}
	if errors.Is(err, errDiffers) {
		return failed
	}
	say(strings.TrimPrefix(err.Error(), "shard: "))
	if _, wrong := errors.AsType[*usageError](err); wrong {
		fmt.Fprintf(stderr, "\"shardctl help %s\" shows how to use it\n", cmd.name)
		return wrongUse
	}
	if _, catalog := errors.AsType[*catalogError](err); catalog {
		return noCatalog
	}
	return failed
}

func find(name string) *command {
	for _, cmd := range commands {
		if cmd.name == name {
			return cmd
		}
	}
	return nil
}
