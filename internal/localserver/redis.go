package localserver

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// RedisConfig says how a Redis server differs from our defaults.
type RedisConfig struct {
	// ReplicaOf is the server to copy and follow.
	// Default: nil, a primary.
	ReplicaOf *Redis

	// Settings are lines of redis.conf, such as "maxmemory": "64mb". A value
	// with blanks needs quotes, unless it is several arguments.
	// Default: none, which leaves an append-only file that is synced every
	// second, or nothing on disk if the Host is Fast.
	Settings map[string]string
}

// A Redis is a Redis server without a password. It is safe for concurrent use.
type Redis struct {
	Server
}

// Redis starts a Redis server. A folder from an earlier Host keeps its data,
// unless the Host is Fast. A replica is returned when it follows its primary.
func (h *Host) Redis(ctx context.Context, name string, cfg RedisConfig) (*Redis, error) {
	settings := maps.Clone(cfg.Settings)
	if cfg.ReplicaOf != nil {
		if settings == nil {
			settings = make(map[string]string)
		}
		settings["replicaof"] = "127.0.0.1 " + strconv.Itoa(cfg.ReplicaOf.Port())
	}
	r := &Redis{}
	if cfg.ReplicaOf != nil {
		r.follow = r.linked
	}
	return r.add(ctx, h, name, func() (map[string]string, error) { return settings, nil })
}

// add starts the server; settings is asked again for each port that is tried.
func (r *Redis) add(ctx context.Context, h *Host, name string, settings func() (map[string]string, error)) (*Redis, error) {
	r.configure = func() error {
		own, err := settings()
		if err != nil {
			return err
		}
		all := map[string]string{"appendonly": "yes", "save": `""`, "repl-diskless-sync-delay": "0"}
		if h.cfg.Fast {
			all["appendonly"] = "no"
		}
		maps.Copy(all, own)
		return r.writeConfig(all)
	}
	r.args = func() []string { return []string{r.configPath()} }
	r.ping = r.pingProcess
	if err := h.add(ctx, &r.Server, KindRedis, name, r.makeDataDir); err != nil {
		return nil, err
	}
	return r, nil
}

func (s *Server) configPath() string { return filepath.Join(s.dir, "redis.conf") }

func (s *Server) makeDataDir(context.Context) error {
	if err := os.MkdirAll(s.dataDir(), 0o700); err != nil {
		return err
	}
	return s.account.own(s.dataDir())
}

// writeConfig writes redis.conf. A file rather than arguments, because Redis
// and Sentinel write their role into it and find it there when restarted.
func (s *Server) writeConfig(settings map[string]string, more ...string) error {
	maps.Copy(settings, map[string]string{
		"bind":      "127.0.0.1",
		"port":      strconv.Itoa(s.Port()),
		"dir":       strconv.Quote(s.dataDir()),
		"daemonize": "no",
		"logfile":   `""`,
	})
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintln(&text, key, settings[key])
	}
	for _, line := range more {
		fmt.Fprintln(&text, line)
	}
	if err := os.WriteFile(s.configPath(), []byte(text.String()), 0o600); err != nil {
		return err
	}
	return s.account.own(s.configPath())
}

// client returns a client for a few commands, to be closed by the caller.
func (s *Server) client() *redis.Client {
	return redis.NewClient(clientOptions(s.Addr()))
}

// clientOptions are for clients that send a few plain commands and do not
// hide errors by trying again.
func clientOptions(addr string) *redis.Options {
	return &redis.Options{
		Addr: addr, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PoolSize: 1,
		ContextTimeoutEnabled:    true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// info returns one field of a section of INFO.
func (s *Server) info(ctx context.Context, section, field string) (string, error) {
	c := s.client()
	defer c.Close()
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return "", err
	}
	return infoField(text, field), nil
}

// infoField finds a line "field:value" in an answer of Redis.
func infoField(text, field string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return value
		}
	}
	return ""
}

// pingProcess succeeds when the process that we started answers: another may
// have taken the port.
func (s *Server) pingProcess(ctx context.Context, pid int) error {
	// Not yet with go-redis, which logs every failure to dial.
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Addr())
	if err != nil {
		return err
	}
	if err := conn.Close(); err != nil {
		return err
	}
	got, err := s.info(ctx, "server", "process_id")
	if err != nil {
		return err
	}
	if got != strconv.Itoa(pid) {
		return fmt.Errorf("%s is the server of process %s, not %d", s.Addr(), got, pid)
	}
	c := s.client()
	defer c.Close()
	return c.Ping(ctx).Err() // INFO also works while data is being loaded
}

// linked succeeds when a replica has the data of its primary.
func (s *Server) linked(ctx context.Context) error {
	status, err := s.info(ctx, "replication", "master_link_status")
	if err == nil && status != "up" {
		err = fmt.Errorf("link to the primary is %q", status)
	}
	return err
}
