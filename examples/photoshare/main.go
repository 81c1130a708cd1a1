// Photoshare is a small photo-sharing server on top of shardgram: users, photos,
// follows, likes and home feeds over sharded PostgreSQL, Redis and memcached.
//
//	photoshare up      start the servers and the site
//	photoshare seed    fill a data folder with people and photographs
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

const usage = `photoshare is a photo-sharing server with its own PostgreSQL, Redis and memcached.

usage:
  photoshare up   [--data DIR | --ephemeral] [--addr HOST:PORT] [--empty]
  photoshare seed [--data DIR]

  up      starts the servers and the site; Ctrl-C stops them. An empty data
          folder is seeded first, unless --empty is given.
  seed    fills an empty data folder with 20 people and their photographs.

  --data DIR        where everything is kept (default ./.photoshare)
  --ephemeral       keep everything in a temporary folder and throw it away
  --addr HOST:PORT  where the site listens (default 127.0.0.1:8080); port 0 is
                    any free one
  --empty           do not seed
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal the next one ends the program at once; the
	// servers end with it.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "photoshare: interrupted")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "photoshare:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong usage")

// run is the program without its process: tests start it with arguments.
func run(ctx context.Context, args []string, out io.Writer) error {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("photoshare "+command, flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Usage = func() { fmt.Fprint(out, usage) }
	data := flags.String("data", ".photoshare", "")
	var do func(context.Context, string, io.Writer) error
	switch command {
	case "up":
		var u up
		flags.StringVar(&u.addr, "addr", "127.0.0.1:8080", "")
		flags.BoolVar(&u.ephemeral, "ephemeral", false, "")
		flags.BoolVar(&u.empty, "empty", false, "")
		do = u.run
	case "seed":
		do = seedFolder
	case "", "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return nil
	default:
		fmt.Fprintf(out, "photoshare: there is no command %q\n\n%s", command, usage)
		return errUsage
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(out, "photoshare: %s is one argument too many\n\n%s", strings.Join(flags.Args(), " "), usage)
		return errUsage
	}
	both := 0
	flags.Visit(func(f *flag.Flag) {
		if f.Name == "data" || f.Name == "ephemeral" {
			both++
		}
	})
	if both == 2 {
		fmt.Fprintf(out, "photoshare: --data keeps everything and --ephemeral nothing: choose one\n\n%s", usage)
		return errUsage
	}
	dir, err := filepath.Abs(*data)
	if err != nil {
		return err
	}
	return do(ctx, dir, out)
}
