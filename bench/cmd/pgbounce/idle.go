package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// readyForQuery ends what a server says when it waits for a query.
var readyForQuery = []byte("Z\x00\x00\x00\x05I")

// login makes a connection that is logged in, and nothing more: a driver would
// need more memory for its own side than can be spared for thousands.
func login(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	hello := []byte("\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00")
	if err := ask(c, append(binary.BigEndian.AppendUint32(nil, uint32(len(hello)+4)), hello...)); err != nil {
		return nil, errors.Join(fmt.Errorf("log in: %w", err), c.Close())
	}
	return c, nil
}

// query runs a short one.
func query(c net.Conn) error {
	const sql = "select 1\x00"
	return ask(c, append(binary.BigEndian.AppendUint32([]byte("Q"), uint32(len(sql)+4)), sql...))
}

// ask sends a message and reads the answer, which is short, to its end.
func ask(c net.Conn, message []byte) error {
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(message); err != nil {
		return err
	}
	var answer []byte
	piece := make([]byte, 4096)
	for !bytes.HasSuffix(answer, readyForQuery) {
		n, err := c.Read(piece)
		answer = append(answer, piece[:n]...)
		if n > 0 && answer[0] == 'E' {
			return fmt.Errorf("refused: %q", answer)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// idle measures what a client costs a new process of a pooler in memory, before
// and after its first query.
func (s *scene) idle(ctx context.Context, who string, n int) (figures, error) {
	p, err := s.start(ctx, who)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	var clients []net.Conn
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	// The first one has all made that is there once.
	first, err := login(ctx, "tcp", local(p.port))
	if err != nil {
		return nil, p.trouble(err)
	}
	clients = append(clients, first)
	if err := query(first); err != nil {
		return nil, p.trouble(err)
	}
	empty, err := p.settled(ctx)
	if err != nil {
		return nil, err
	}
	for range n {
		c, err := login(ctx, "tcp", local(p.port))
		if err != nil {
			return nil, p.trouble(fmt.Errorf("client %d: %w", len(clients), err))
		}
		clients = append(clients, c)
	}
	fresh, err := p.settled(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range clients[1:] {
		if err := query(c); err != nil {
			return nil, p.trouble(err)
		}
	}
	used, err := p.settled(ctx)
	if err != nil {
		return nil, err
	}
	return figures{
		"fresh_bytes": float64(fresh-empty) / float64(n),
		"used_bytes":  float64(used-empty) / float64(n),
	}, nil
}

// settled returns the memory when it has not changed for a second, or after ten
// seconds.
func (p *pooler) settled(ctx context.Context) (int64, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last int64
	for begin, since := time.Now(), time.Now(); ; {
		now, err := p.rss()
		if err != nil {
			return 0, p.trouble(err)
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > time.Second || time.Since(begin) > 10*time.Second {
			return now, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
