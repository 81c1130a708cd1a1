package store

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// gather runs a query on the shards of ids, each with its own ids as $1 and
// args behind them, and returns all rows, in no order. IDs of shards that do
// not exist find nothing.
func gather[T any](ctx context.Context, c *shard.Cluster, ids []idgen.ID, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	groups := c.Group(ids...)
	var shards []shard.Shard
	for sh := range groups {
		if sh.Number() < len(c.Shards()) {
			shards = append(shards, sh)
		}
	}
	var mu sync.Mutex
	var all []T
	err := c.Each(ctx, shards, func(ctx context.Context, sh shard.Shard) error {
		found, err := collect(ctx, sh, scan, sql, slices.Concat([]any{groups[sh]}, args)...)
		mu.Lock()
		defer mu.Unlock()
		all = append(all, found...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return all, nil
}

// collect returns the rows of a query on one shard.
func collect[T any](ctx context.Context, sh shard.Shard, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := sh.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}

func byID[T any](rows []T, id func(T) idgen.ID) map[idgen.ID]T {
	m := make(map[idgen.ID]T, len(rows))
	for _, row := range rows {
		m[id(row)] = row
	}
	return m
}
