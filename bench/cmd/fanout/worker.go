package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/feedcache"
)

// ordersVariable tells this program that it is a worker, and for whom.
const ordersVariable = "FANOUT_ORDERS"

// orders are what a worker needs to know.
type orders struct {
	Postgres string // address
	Redis    string
	Job      int // its row
	Page     int
}

// An outcome is what a worker says when it is done.
type outcome struct {
	Warm int
	Cold int
}

// work does one job, from where its cursor is.
func work(ctx context.Context, text string) error {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, o.Postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	rdb := redis.NewClient(&redis.Options{Addr: o.Redis})
	defer rdb.Close()
	feeds, err := openFeeds(rdb, noSource)
	if err != nil {
		return err
	}
	fanout, err := feedcache.NewFanout(feeds, followersIn(pool), feedcache.FanoutConfig{PageSize: o.Page})
	if err != nil {
		return err
	}
	var job feedcache.Job
	row := pool.QueryRow(ctx, `select body, after from job where id = $1`, o.Job)
	if err := row.Scan(&job, &job.After); err != nil {
		return err
	}
	d, err := fanout.Run(ctx, job, func(ctx context.Context, cursor int64) error {
		_, err := pool.Exec(ctx, `update job set after = $1 where id = $2`, cursor, o.Job)
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(outcome{d.Warm, d.Cold})
}

// followersIn reads them by their key, so that a page costs the same wherever
// it is.
func followersIn(pool *pgxpool.Pool) feedcache.Followers {
	return func(ctx context.Context, author, after int64, n int) ([]int64, error) {
		rows, err := pool.Query(ctx,
			`select follower from follower where author = $1 and follower > $2 order by follower limit $3`,
			author, after, n)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[int64])
	}
}

// noSource is for feeds that are all warm.
func noSource(_ context.Context, owner, _ int64, _ int) ([]int64, error) {
	return nil, fmt.Errorf("the feed of %d is cold", owner)
}

// errEnded says that a worker was done before it could be killed.
var errEnded = errors.New("the worker ended before it was killed: choose a larger -n or a smaller -page")
