package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/examples/photoshare/web"
)

// redisLog gets what go-redis would print by itself. The calls that failed say
// the same.
type redisLog struct{ *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	l.DebugContext(ctx, fmt.Sprintf(format, args...))
}

// up is the command that runs everything until its context ends.
type up struct {
	addr             string
	ephemeral, empty bool
}

func (u *up) run(ctx context.Context, dir string, out io.Writer) (err error) {
	if host, _, err := net.SplitHostPort(u.addr); err == nil && host == "" {
		return fmt.Errorf("--addr %q has no host: say 127.0.0.1 for this machine only, or 0.0.0.0 for every network it is on", u.addr)
	}
	// A busy port is found before anything is started.
	listener, err := net.Listen("tcp", u.addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another program: choose another address with --addr, such as 127.0.0.1:0 for any free port", u.addr)
	}
	if err != nil {
		return fmt.Errorf("cannot listen on %q: %w", u.addr, err)
	}
	defer listener.Close()

	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	redis.SetLogger(redisLog{log})
	cfg := systemConfig{Log: log, Out: out}
	if u.ephemeral {
		fmt.Fprintln(out, "photoshare starts; what it stores is thrown away at the end")
	} else {
		if cfg.Folder, err = openFolder(dir); err != nil {
			return err
		}
		fmt.Fprintln(out, "photoshare starts; data in", dir)
	}
	sys, err := startSystem(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()

	if !u.empty {
		if _, err := sys.seedOnce(ctx, cfg.Folder, out); err != nil {
			return err
		}
	}
	site, err := web.New(sys.store, sys.rdb, web.Config{Log: log})
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           site,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       time.Minute, // a photo from a slow phone
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10, // pages repeat their address in every form
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprintf(out, "\nphotoshare is ready: http://%s\n", listener.Addr())
	if _, err := sys.store.LogIn(ctx, seedNames[0], seedPassword); err == nil {
		fmt.Fprintf(out, "Log in as %s with the password %q, or sign up. ", seedNames[0], seedPassword)
	}
	fmt.Fprintln(out, "Ctrl-C stops everything.")
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintln(out, "\nphotoshare stops")
	// Requests under way may end. What still hangs then, as a browser's
	// connection that has asked for nothing, is cut.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return server.Close()
}
