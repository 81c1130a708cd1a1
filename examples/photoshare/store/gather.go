package store

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// byShard returns a query on the shards of ids, each with its own ids as $1 and
// args behind them. IDs of shards that do not exist find nothing.
func byShard[T any](c *shard.Cluster, ids []idgen.ID, scan pgx.RowToFunc[T], sql string, args ...any) shard.Scatter[T] {
	groups := c.Group(ids...)
	return shard.Scatter[T]{
		SQL: sql, Scan: scan, Shards: slices.AppendSeq([]shard.Shard{}, maps.Keys(groups)),
		ShardArgs: func(sh shard.Shard) []any { return append([]any{groups[sh]}, args...) },
	}
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

// orNone is for a row that may not be there.
func orNone(err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return err
}
