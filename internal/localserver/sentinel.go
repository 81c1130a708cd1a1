package localserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// SentinelConfig says what a Redis Sentinel watches.
type SentinelConfig struct {
	// Primary is the server to watch, together with its replicas. Required.
	Primary *Redis

	// Master is the name under which clients ask for the primary.
	// Default: "primary".
	Master string

	// Quorum is how many Sentinels must agree that the primary is down.
	// Default: 1.
	Quorum int

	// DownAfter is how long the primary must be silent to count as down.
	// Default: 1 s.
	DownAfter time.Duration
}

// A Sentinel is a Redis Sentinel: it makes a replica the primary when the
// primary is down, and tells clients. It is safe for concurrent use.
type Sentinel struct {
	Server
	master string
}

// Sentinel starts a Redis Sentinel and returns once it knows the replicas of
// the primary, and the Sentinels that were started before it. What it learned
// is kept over a Restart, but not in a folder from an earlier Host.
func (h *Host) Sentinel(ctx context.Context, name string, cfg SentinelConfig) (*Sentinel, error) {
	cfg.Master = cmp.Or(cfg.Master, "primary")
	cfg.Quorum = cmp.Or(cfg.Quorum, 1)
	cfg.DownAfter = cmp.Or(cfg.DownAfter, time.Second)
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("localserver: start sentinel %s: %w", name, err)
	}
	s := &Sentinel{master: cfg.Master}
	s.configure = func() error {
		return s.writeConfig(map[string]string{},
			fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d %d", cfg.Master, cfg.Primary.Port(), cfg.Quorum),
			fmt.Sprintf("sentinel down-after-milliseconds %s %d", cfg.Master, cfg.DownAfter.Milliseconds()),
			// How soon a failover that got stuck is tried again.
			fmt.Sprintf("sentinel failover-timeout %s %d", cfg.Master, (10*time.Second).Milliseconds()),
		)
	}
	s.args = func() []string { return []string{s.configPath(), "--sentinel"} }
	s.ping = s.pingProcess
	s.follow = func(ctx context.Context) error { return s.knowsAll(ctx, cfg.Primary) }
	if err := h.add(ctx, &s.Server, KindSentinel, name, s.makeDataDir); err != nil {
		return nil, err
	}
	return s, nil
}

func (c SentinelConfig) check() error {
	switch {
	case c.Primary == nil:
		return errors.New("no Primary to watch")
	case c.Quorum < 0:
		return fmt.Errorf("negative Quorum: %d", c.Quorum)
	case c.DownAfter < time.Millisecond:
		return fmt.Errorf("less than 1 ms of DownAfter: %s", c.DownAfter)
	}
	return nil
}

// Master returns the name under which clients ask for the primary.
func (s *Sentinel) Master() string { return s.master }

// knowsAll succeeds when the Sentinel knows as many replicas as the primary
// has, and as many Sentinels as have subscribed there: before that a failover
// finds nobody to promote, or no majority.
func (s *Sentinel) knowsAll(ctx context.Context, primary *Redis) error {
	replicas, err := primary.info(ctx, "replication", "connected_slaves")
	if err != nil {
		return err
	}
	c := primary.client()
	defer c.Close()
	const hello = "__sentinel__:hello"
	subscribed, err := c.PubSubNumSub(ctx, hello).Result()
	if err != nil {
		return err
	}
	asked := redis.NewSentinelClient(clientOptions(s.Addr()))
	defer asked.Close()
	view, err := asked.Master(ctx, s.master).Result()
	if err != nil {
		return err
	}
	others, err := strconv.ParseInt(view["num-other-sentinels"], 10, 64)
	if err != nil {
		return err
	}
	if view["flags"] != "master" || view["num-slaves"] != replicas || others+1 != subscribed[hello] {
		return fmt.Errorf("sees the primary as %q with %s of %s replicas, and %d of %d sentinels",
			view["flags"], view["num-slaves"], replicas, others+1, subscribed[hello])
	}
	return nil
}
