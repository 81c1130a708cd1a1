//go:build unix

package main

import (
	"errors"
	"flag"
	"io"
	"strings"
)

const usage = `pgbounce is a connection pooler for PostgreSQL.

Usage:
  pgbounce [OPTION]... CONFIG_FILE

Options:
  -d, --daemon         run in background (as a daemon)
  -q, --quiet          run quietly: no log on standard error
  -R, --reboot         deprecated, and not supported: use so_reuseport
  -u, --user=USERNAME  assume identity of USERNAME
  -v, --verbose        increase verbosity
  -V, --version        show version, then exit
  -h, --help           show this help, then exit

CONFIG_FILE is a pgbouncer.ini.

Signals:
  HUP         read the configuration again and reopen the log
  TERM        let no one in, and end when the last client has left
  INT         let no one in, and end when the last transaction is done
  QUIT        end at once, as a second TERM or INT does
  USR1, USR2  pause, and resume
`

// options are what the command line says.
type options struct {
	path                                 string
	user                                 string
	verbose                              int
	daemon, quiet, reboot, help, version bool
}

// parseOptions reads a command line as getopt does: letters may be joined, and
// options may come behind the file.
func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("pgbounce", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run tells of errors
	for _, names := range []struct {
		short, long string
		to          *bool
	}{
		{"d", "daemon", &o.daemon},
		{"q", "quiet", &o.quiet},
		{"R", "reboot", &o.reboot},
		{"V", "version", &o.version},
		{"h", "help", &o.help},
	} {
		flags.BoolVar(names.to, names.short, false, "")
		flags.BoolVar(names.to, names.long, false, "")
	}
	louder := func(string) error {
		o.verbose++
		return nil
	}
	flags.BoolFunc("v", "", louder)
	flags.BoolFunc("verbose", "", louder)
	flags.StringVar(&o.user, "u", "", "")
	flags.StringVar(&o.user, "user", "", "")

	var files []string
	for args = splitLetters(args); len(args) > 0; {
		if err := flags.Parse(args); err != nil {
			return o, err
		}
		if args = flags.Args(); len(args) > 0 {
			files = append(files, args[0])
			args = args[1:]
		}
	}
	switch {
	case o.help || o.version:
	case len(files) == 0:
		return o, errors.New("no configuration file specified")
	case len(files) > 1:
		return o, errors.New("more than one configuration file specified")
	default:
		o.path = files[0]
	}
	return o, nil
}

// splitLetters makes "-d", "-q" of "-dq", and "-u", "bob" of "-ubob".
func splitLetters(args []string) []string {
	var all []string
	for _, arg := range args {
		for len(arg) > 2 && arg[0] == '-' && arg[1] != '-' && arg[1] != 'u' && strings.IndexByte("dqRvVh", arg[1]) >= 0 {
			all = append(all, arg[:2])
			arg = "-" + arg[2:]
		}
		if user, ok := strings.CutPrefix(arg, "-u"); ok && user != "" {
			all = append(all, "-u", user)
			continue
		}
		all = append(all, arg)
	}
	return all
}
