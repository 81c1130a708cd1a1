package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/shardgram/shardgram/shard"
)

var hotCommand = command{
	name: "hot", short: "rank the shards by the work they do now", help: hotHelp,
	flags: func(c *call) {
		c.flags.DurationVar(&c.interval, "for", 10*time.Second, "")
		c.flags.IntVar(&c.top, "top", 20, "")
	},
	run: runHot,
}

func runHot(ctx context.Context, c *call) error {
	if err := c.want(0, ""); err != nil {
		return err
	}
	if c.interval <= 0 || c.top <= 0 {
		return &usageError{"--for and --top are more than 0"}
	}
	return c.withCluster(ctx, func(cluster *shard.Cluster) error {
		before, err := loads(ctx, cluster)
		if len(before) == 0 && err != nil {
			return err
		}
		begun := time.Now()
		select {
		case <-time.After(c.interval):
		case <-ctx.Done():
			return ctx.Err()
		}
		after, err := loads(ctx, cluster)
		took := time.Since(begun)
		then := make(map[int]shard.Load)
		for _, l := range before {
			then[l.Shard] = l
		}
		var news []shard.Load
		for _, l := range after {
			if was, ok := then[l.Shard]; ok {
				news = append(news, l.Sub(was))
			}
		}
		heats := shard.Heats(news)
		shown := heats[:min(c.top, len(heats))]
		if c.json {
			return errors.Join(err, printJSON(c.stdout, struct {
				Took   time.Duration `json:"took"`
				Shards []heat        `json:"shards"`
				Failed []failure     `json:"failed"`
			}{took, all(shown), failures(err)}))
		}
		printHeats(c, shown, took)
		return err
	})
}

// loads gives a node that does not answer up after a while.
func loads(ctx context.Context, cluster *shard.Cluster) ([]shard.Load, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return cluster.Loads(ctx)
}

// heat is a shard.Heat with what its methods tell.
type heat struct {
	shard.Heat
	HitRatio    float64 `json:"hit_ratio"`
	ReadsPerRow float64 `json:"reads_per_row"`
}

func all(heats []shard.Heat) []heat {
	list := []heat{}
	for _, h := range heats {
		list = append(list, heat{h, h.HitRatio(), h.ReadsPerRow()})
	}
	return list
}

func printHeats(c *call, heats []shard.Heat, took time.Duration) {
	if len(heats) == 0 || heats[0].Work() == 0 {
		fmt.Fprintf(c.stdout, "no shard was read or written in %v\n", took.Round(100*time.Millisecond))
		return
	}
	rows := [][]string{{"SHARD", "NODE", "SHARE", "", "xNODE", "READ/S", "WRITE/S", "HIT", "DISK/ROW", "SIZE"}}
	rate := func(n int64) string { return short(float64(n) / took.Seconds()) }
	for _, h := range heats {
		if h.Work() == 0 {
			break
		}
		rows = append(rows, []string{
			strconv.Itoa(h.Shard), h.Node,
			fmt.Sprintf("%.1f%%", 100*h.Share), bar(h.Share/heats[0].Share, 10), fmt.Sprintf("%.1f", h.Above),
			rate(h.RowsRead), rate(h.RowsWritten),
			fmt.Sprintf("%.0f%%", 100*h.HitRatio()), fmt.Sprintf("%.2f", h.ReadsPerRow()), size(h.Bytes),
		})
	}
	table(c.stdout, rows)
}
