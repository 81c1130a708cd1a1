package main

import (
	"context"
	"flag"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"time"

	"github.com/shardgram/shardgram/pgbounce"
)

func main() {
	listen := flag.String("l", "127.0.0.1:6544", "")
	port := flag.Int("p", 5432, "")
	prof := flag.String("prof", "", "")
	mode := flag.Int("mode", 1, "")
	quiet := flag.Bool("q", true, "")
	loops := flag.Int("loops", 0, "")
	flag.Parse()
	b, err := pgbounce.New(pgbounce.Config{
		Databases: map[string]pgbounce.Database{"*": {Hosts: []string{"127.0.0.1"}, Port: *port, User: "postgres"}},
		Mode:      pgbounce.Mode(*mode), QuietConnections: *quiet, Loops: *loops, ServerLoginRetry: time.Second,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		panic(err)
	}
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		panic(err)
	}
	if *prof != "" {
		f, _ := os.Create(*prof)
		pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b.Serve(ctx, ln)
	b.Close()
}
