//go:build unix

// Pgbounce is a connection pooler for PostgreSQL that reads the pgbouncer.ini of
// PgBouncer. Package pgbounce tells what it does; "pgbounce -h", how to start it.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/shardgram/shardgram/pgbounce"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, signals))
}

// run does what the arguments say, until a signal or ctx ends it, and returns
// the code to exit with.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, signals <-chan os.Signal) int {
	o, err := parseOptions(args)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "pgbounce: %v\nTry \"pgbounce --help\" for more information.\n", err)
		return 1
	case o.help:
		fmt.Fprint(stdout, usage)
		return 0
	case o.version:
		fmt.Fprintf(stdout, "pgbounce %s\n%s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return 0
	}
	f, err := pgbounce.ReadINI(o.path)
	if err == nil && o.user != "" {
		f.User = o.user
	}
	ready := readyPipe()
	switch {
	case err != nil:
	case o.daemon:
		err = startDaemon(args, &f)
		if err == nil {
			return 0
		}
	default:
		err = serve(ctx, o, f, stderr, signals, ready)
	}
	if err != nil {
		fmt.Fprintf(stderr, "pgbounce: %v\n", err)
		ready.failed(err)
		return 1
	}
	return 0
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
