package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/shardgram/shardgram/internal/localserver"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// memcachedServer is a memcached with the pairs as items.
type memcachedServer struct {
	*localserver.Memcached
	client  *memcache.Client
	process time.Duration // at resetCPU
}

func startMemcached(ctx context.Context, host *localserver.Host, l layout, _ *result) (server, store, error) {
	// Room enough that nothing is evicted.
	megabytes := 64 + int(l.memory*float64(l.Keys))>>20
	srv, err := host.Memcached(ctx, fmt.Sprintf("memcached-%d", len(host.Servers())), localserver.MemcachedConfig{Memory: megabytes})
	if err != nil {
		return nil, nil, err
	}
	s := &memcachedServer{Memcached: srv, client: memcache.New(srv.Addr())}
	s.client.Timeout = 10 * time.Second
	s.client.MaxIdleConns = together
	return s, s, nil
}

func (s *memcachedServer) close() {
	s.client.Close()
	s.Kill()
}

// load sends items without waiting for replies, which gomemcache cannot.
func (s *memcachedServer) load(ctx context.Context, keys int64, progress func(int64)) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	w := bufio.NewWriterSize(conn, 64<<10)
	var line, value []byte
	for i := range keys {
		value = strconv.AppendInt(value[:0], owner(i), 10)
		line = append(line[:0], "set "...)
		line = strconv.AppendInt(line, i, 10)
		line = append(line, " 0 0 "...)
		line = strconv.AppendInt(line, int64(len(value)), 10)
		line = append(line, " noreply\r\n"...)
		line = append(line, value...)
		line = append(line, "\r\n"...)
		if _, err := w.Write(line); err != nil {
			return err
		}
		if i%pipelined == 0 {
			progress(i)
		}
	}
	// Its reply comes after all of that was done.
	if _, err := w.WriteString("version\r\n"); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	reply, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(reply, "VERSION") {
		err = fmt.Errorf("memcached said %q", reply)
	}
	return err
}

func (s *memcachedServer) get(_ context.Context, i int64) (int64, error) {
	item, err := s.client.Get(strconv.FormatInt(i, 10))
	if errors.Is(err, memcache.ErrCacheMiss) {
		return absent, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(item.Value), 10, 64)
}

func (s *memcachedServer) getMulti(_ context.Context, photos, owners []int64) error {
	keys := make([]string, len(photos))
	for j, i := range photos {
		keys[j] = strconv.FormatInt(i, 10)
	}
	items, err := s.client.GetMulti(keys)
	for j, key := range keys {
		owners[j] = absent
		if item, present := items[key]; present && err == nil {
			owners[j], err = strconv.ParseInt(string(item.Value), 10, 64)
		}
	}
	return err
}

// stats returns the counters of "stats", or of one kind of them.
func (s *memcachedServer) stats(ctx context.Context, kind string) (map[string]string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "stats%s\r\n", kind); err != nil {
		return nil, err
	}
	fields := map[string]string{}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		words := strings.SplitN(lines.Text(), " ", 3)
		if words[0] == "END" {
			return fields, nil
		}
		if len(words) == 3 {
			fields[words[1]] = words[2]
		}
	}
	return nil, errors.Join(lines.Err(), errors.New("memcached ended its answer early"))
}

// usage is the memory of the slabs and of the hash table, after that has grown.
func (s *memcachedServer) usage(ctx context.Context) (used, rss int64, err error) {
	for {
		general, err := s.stats(ctx, "")
		if err != nil {
			return 0, 0, err
		}
		if general["hash_is_expanding"] == "1" {
			select {
			case <-ctx.Done():
				return 0, 0, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		slabs, err := s.stats(ctx, " slabs")
		if err != nil {
			return 0, 0, err
		}
		table, err1 := strconv.ParseInt(general["hash_bytes"], 10, 64)
		items, err2 := strconv.ParseInt(slabs["total_malloced"], 10, 64)
		rss, err3 := proof.Kilobytes("/proc/"+general["pid"]+"/status", "VmRSS")
		if general["evictions"] != "0" {
			err3 = errors.Join(err3, fmt.Errorf("memcached has evicted %s items", general["evictions"]))
		}
		return table + items, rss, errors.Join(err1, err2, err3)
	}
}

func (s *memcachedServer) resetCPU(ctx context.Context) error {
	var err error
	s.process, err = s.processTime(ctx)
	return err
}

func (s *memcachedServer) processTime(ctx context.Context) (time.Duration, error) {
	fields, err := s.stats(ctx, "")
	if err != nil {
		return 0, err
	}
	user, err1 := strconv.ParseFloat(fields["rusage_user"], 64)
	system, err2 := strconv.ParseFloat(fields["rusage_system"], 64)
	return time.Duration((user + system) * float64(time.Second)), errors.Join(err1, err2)
}

// cpu has no time of commands: memcached does not tell it.
func (s *memcachedServer) cpu(ctx context.Context) (commands, process time.Duration, err error) {
	process, err = s.processTime(ctx)
	return 0, process - s.process, err
}

// persist does nothing: memcached keeps nothing.
func (s *memcachedServer) persist(context.Context, *result, *proof.Progress) error { return nil }
