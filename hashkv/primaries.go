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
	cluster, ok := rdb.(interface {
		ForEachMaster(context.Context, func(context.Context, *redis.Client) error) error
	})
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
		// Not WAIT's own answer: from 7.2 on that is about the last write of its
		// connection, and the writes were made on others.
		var goal int64
		var history string
		for end := time.Now().Add(replicaTimeout); ; {
			var info *redis.StringCmd
			_, err := c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				if goal > 0 { // has replicas say at once how far they are: there are never so many
					_ = pipe.Process(ctx, redis.NewIntCmd(ctx, "wait", 1<<20, 5))
				}
				info = pipe.Info(ctx, "replication")
				return nil
			})
			if err != nil {
				return err
			}
			if goal == 0 {
				if goal, err = strconv.ParseInt(infoField(info.Val(), "master_repl_offset"), 10, 64); err != nil {
					return err
				}
				history = infoField(info.Val(), "master_replid")
			}
			if infoField(info.Val(), "master_replid") != history {
				return nil // another primary: its replicas do not count
			}
			got := 0
			for line := range strings.Lines(info.Val()) { // slave0:ip=...,port=...,state=online,offset=1234,lag=0
				if _, fields, ok := strings.Cut(line, ",state=online,offset="); ok {
					text, _, _ := strings.Cut(fields, ",")
					if offset, err := strconv.ParseInt(text, 10, 64); err == nil && offset >= goal {
						got++
					}
				}
			}
			switch {
			case got >= n:
				return nil
			case time.Now().After(end):
				return errors.New(addr + " has only " + strconv.Itoa(got) + " replicas up to date: want " + strconv.Itoa(n))
			}
		}
	})
}
