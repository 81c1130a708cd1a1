package hashkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// onPrimaries calls fn for each server that takes writes, with its address:
// the one of a plain or Sentinel client, all of a Cluster. Calls do not overlap.
func onPrimaries(ctx context.Context, rdb redis.UniversalClient, fn func(c redis.UniversalClient, addr string) error) error {
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		addr := "the server"
		if c, ok := rdb.(*redis.Client); ok {
			addr = c.Options().Addr
		}
		return fn(rdb, addr)
	}
	var mu sync.Mutex
	return cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		return fn(c, c.Options().Addr)
	})
}

// runs returns the identities of the processes that are primaries now. As long
// as they stay the same no failover undoes what they have done.
func runs(ctx context.Context, rdb redis.UniversalClient) ([]string, error) {
	var ids []string
	err := onPrimaries(ctx, rdb, func(c redis.UniversalClient, addr string) error {
		info, err := c.Info(ctx).Result()
		if err != nil {
			return err
		}
		if role := infoField(info, "role"); role != "master" {
			return fmt.Errorf("%s is a %s", addr, role)
		}
		ids = append(ids, infoField(info, "run_id"))
		return nil
	})
	slices.Sort(ids)
	return ids, err
}

// infoField finds a line "field:value" in an answer to INFO.
func infoField(info, field string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return value
		}
	}
	return ""
}

// onReplicas does what do does, and waits until n replicas of every primary have
// it. It does so again if another server has become a primary meanwhile: that
// one may not have what was done on the old one.
func onReplicas(ctx context.Context, rdb redis.UniversalClient, n int, do func() error) error {
	for {
		before, err := runs(ctx, rdb)
		if err != nil {
			return err
		}
		if err = do(); err != nil {
			return err
		}
		if err = replicated(ctx, rdb, n); err != nil {
			return err
		}
		after, err := runs(ctx, rdb)
		if err != nil || slices.Equal(before, after) {
			return err
		}
	}
}

// replicaTimeout is how long a server may take to bring replicas up to date
// before a call that waits for that gives up.
const replicaTimeout = 10 * time.Second

// replicated waits until n replicas of every primary have all that was written
// before.
func replicated(ctx context.Context, rdb redis.UniversalClient, n int) error {
	if n == 0 {
		return nil
	}
	return onPrimaries(ctx, rdb, func(c redis.UniversalClient, addr string) error {
		for end := time.Now().Add(replicaTimeout); ; {
			var got *redis.IntCmd
			// WAIT is for what the server had done at the last command of its
			// connection, whoever sent it: a PING makes that now. It waits for
			// less than the client's read timeout, 3 s unless set.
			_, err := c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				pipe.Ping(ctx)
				got = redis.NewIntCmd(ctx, "wait", n, (500 * time.Millisecond).Milliseconds())
				return pipe.Process(ctx, got)
			})
			switch {
			case err != nil:
				return err
			case got.Val() >= int64(n):
				return nil
			case time.Now().After(end):
				return errors.New(addr + " has only " + strconv.FormatInt(got.Val(), 10) +
					" replicas up to date: want " + strconv.Itoa(n))
			}
		}
	})
}
