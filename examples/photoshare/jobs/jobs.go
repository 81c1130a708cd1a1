// Package jobs is a queue for the fan-out of photos that commits with them.
//
// # Problem
//
// A photo whose fan-out is only in memory is lost to its followers when the
// program dies, and one whose fan-out lies in another system is so when the
// program dies between the two. So the job is a row beside the photo, written
// in one transaction with it.
//
// # Scheme
//
// Every node of PostgreSQL has a schema "jobs" with the tables of River, and a
// few connections of ours. The job of a photo lies on the node of its author's
// shard.
//
//	node pg_1                                     node pg_2
//	┌─────────────────────────────────────┐       ┌──────────────
//	│ shard_0007.photo    jobs.river_job  │       │ shard_0031 …
//	│   insert ── one transaction ── ▲    │       │
//	└────────────────────────────────│────┘       └──────────────
//	                   NOTIFY, or a poll every second
//	                                 ▼
//	                        worker in any process ──► the feeds in Redis
//
//	state   available ──► running ──► completed, deleted after an hour
//	            ▲            │ an error: again after 0.25 s, 0.5 s, … 15 s
//	            └────────────┘ after 30 s: its process is dead
//
// # Guarantees
//
// A job is there if and only if its transaction committed. It is run at least
// once, for as long as it returns errors other than feedcache.ErrInvalid, and by
// one worker at a time unless that one does not stop when its time is over. What it saved as its cursor it is given
// as Job.After the next time, also after a SIGKILL. A job that is equal to one
// that is there, or was done within the hour, is not stored a second time.
//
// # Non-guarantees
//
// Jobs are run in no particular order. A node that the cluster gets after Open
// has no queue until the next Open, so what enqueues there fails. A job whose
// worker panics or is killed 32,767 times is given up.
//
// # Cost
//
// A job is one statement of the transaction to store, and two more to run,
// which River does for many jobs at once; each cursor is one more. A process
// keeps at most 4 connections to each node, one of which listens: the DSNs in the
// catalog must not lead to a pooler in transaction mode.
//
// # Failure behaviour
//
// A node that is down keeps its jobs until it is back, and no others. The jobs
// of a process that was killed go on after 30 to 75 seconds: 15 until River has
// another leader if it was that, and up to 30 until that one looks.
//
// River is described in "River: a fast, robust job queue for Go + Postgres",
// Brandur Leach, 2023.
package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"golang.org/x/sync/errgroup"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// Schema is where River's tables are, on every node.
const Schema = "jobs"

// Config is what Open takes beside the cluster. The zero value works.
type Config struct {
	// Workers is how many jobs of one node a process runs at a time, 1 to 100.
	// Default: 4.
	Workers int

	// Timeout is how long a job may take before it is stopped, to go on at its
	// cursor. One that has run half as long again is taken for dead. At least a
	// second. Default: 20 s.
	Timeout time.Duration

	// Log gets what goes wrong in the background. Default: slog.Default().
	Log *slog.Logger
}

// Run does a job. What it gives to save is the job's After if it is run again.
type Run func(ctx context.Context, job feedcache.Job, save func(ctx context.Context, cursor int64) error) error

// A Queue keeps jobs until they are done. It is safe for concurrent use. Make
// it with Open.
type Queue struct {
	cluster *shard.Cluster
	nodes   map[string]*node
	// inserter writes in transactions: its rows go where the transaction is.
	inserter *river.Client[pgx.Tx]
	closing  sync.Once
}

var _ feedcache.Queue = (*Queue)(nil)

// A node is the queue of one node.
type node struct {
	pool   *pgxpool.Pool
	client *river.Client[pgx.Tx]
	run    Run
	river.WorkerDefaults[args]
}

// args are a job as River stores it.
type args struct{ feedcache.Job }

// Kind returns the name of the jobs in River's tables.
func (args) Kind() string { return "fanout" }

// Open makes the tables of the queue on every node that lacks them. It runs no
// jobs: that is Start's part.
func Open(ctx context.Context, cluster *shard.Cluster, cfg Config) (_ *Queue, err error) {
	if cfg.Workers == 0 {
		cfg.Workers = 4
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	switch {
	case cluster == nil:
		return nil, errors.New("jobs: the cluster is nil")
	case cfg.Workers < 1 || cfg.Workers > 100:
		return nil, fmt.Errorf("jobs: Config.Workers is %d: want 1 to 100", cfg.Workers)
	case cfg.Timeout < time.Second:
		return nil, fmt.Errorf("jobs: Config.Timeout is %v: want at least 1 s", cfg.Timeout)
	}
	q := &Queue{cluster: cluster, nodes: map[string]*node{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.Close())
		}
	}()
	for _, n := range cluster.Map().Nodes {
		opened, err := open(ctx, n.DSN, cfg)
		if err != nil {
			return nil, fmt.Errorf("jobs: open node %s: %w", n.Name, err)
		}
		q.nodes[n.Name], q.inserter = opened, opened.client
	}
	return q, nil
}

func open(ctx context.Context, dsn string, cfg Config) (_ *node, err error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("its DSN cannot be read") // the error has it
	}
	c.MaxConns = 4
	c.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pool.Close()
		}
	}()
	driver, log := riverpgxv5.New(pool), slog.New(warnings{cfg.Log.Handler()})
	if err := migrate(ctx, pool, driver, log); err != nil {
		return nil, err
	}
	n, workers := &node{pool: pool}, river.NewWorkers()
	river.AddWorker(workers, n)
	n.client, err = river.NewClient(driver, &river.Config{
		Schema:  Schema,
		Workers: workers,
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: cfg.Workers, FetchCooldown: 20 * time.Millisecond}},
		Logger:  log,
		// A photo must reach its followers some day. What fails does not count
		// here, only what crashes.
		MaxAttempts:                 math.MaxInt16,
		RetryPolicy:                 backoff{},
		JobTimeout:                  cfg.Timeout,
		RescueStuckJobsAfter:        cfg.Timeout * 3 / 2,
		SoftStopTimeout:             time.Second,
		CompletedJobRetentionPeriod: time.Hour,
	})
	return n, err
}

// migrate brings River's tables up to date, one process at a time.
func migrate(ctx context.Context, pool *pgxpool.Pool, driver *riverpgxv5.Driver, log *slog.Logger) error {
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Schema: Schema, Logger: log})
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended('photoshare/jobs', 0))"); err != nil {
			return err
		}
		// River's migrations do not all run in a transaction: the lock does.
		if _, err := pool.Exec(ctx, "create schema if not exists "+Schema); err != nil {
			return err
		}
		_, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		return err
	})
}

// Start runs the jobs of all nodes until Close. It may be called once.
func (q *Queue) Start(ctx context.Context, run Run) error {
	for name, n := range q.nodes {
		n.run = run
		if err := n.client.Start(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("jobs: start node %s: %w", name, err)
		}
	}
	return nil
}

// Close stops the workers and waits for them. Jobs that are cut off go on at
// their cursors when the queue is opened again.
func (q *Queue) Close() error {
	var err error
	q.closing.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var group errgroup.Group
		for name, n := range q.nodes {
			group.Go(func() error {
				if err := n.client.Stop(ctx); err != nil {
					// Its pool would wait for what hangs.
					return fmt.Errorf("jobs: close node %s: %w", name, err)
				}
				n.pool.Close()
				return nil
			})
		}
		err = group.Wait()
	})
	return err
}

// EnqueueTx stores jobs in tx, a transaction on the shard of their authors.
func (q *Queue) EnqueueTx(ctx context.Context, tx pgx.Tx, jobs ...feedcache.Job) error {
	if _, err := q.inserter.InsertManyTx(ctx, tx, params(jobs)); err != nil {
		return fmt.Errorf("jobs: enqueue: %w", err)
	}
	return nil
}

// Enqueue stores jobs, each on the node of its author.
func (q *Queue) Enqueue(ctx context.Context, jobs ...feedcache.Job) error {
	byNode := map[string][]feedcache.Job{}
	for _, job := range jobs {
		name := q.cluster.ID(idgen.ID(job.Author)).Node()
		byNode[name] = append(byNode[name], job)
	}
	for name, jobs := range byNode {
		n := q.nodes[name]
		if n == nil {
			return fmt.Errorf("jobs: enqueue: node %q: %w", name, shard.ErrNoNode)
		}
		if _, err := n.client.InsertMany(ctx, params(jobs)); err != nil {
			return fmt.Errorf("jobs: enqueue: node %s: %w", name, err)
		}
	}
	return nil
}

func params(jobs []feedcache.Job) []river.InsertManyParams {
	many := make([]river.InsertManyParams, len(jobs))
	for i, job := range jobs {
		opts := &river.InsertOpts{Priority: 1, UniqueOpts: river.UniqueOpts{ByArgs: true}}
		if job.After > 0 || job.Until > 0 {
			// A part of a large fan-out lets small ones pass.
			opts.Priority = 2
		}
		many[i] = river.InsertManyParams{Args: args{job}, InsertOpts: opts}
	}
	return many
}

// Work runs a job from its cursor on. River calls it.
func (n *node) Work(ctx context.Context, row *river.Job[args]) error {
	job := row.Args.Job
	if saved := row.Output(); len(saved) > 0 {
		if err := json.Unmarshal(saved, &job.After); err != nil {
			return fmt.Errorf("its cursor cannot be read: %w", err)
		}
	}
	// River would store the cursor when the job ends, which a program that is
	// killed never sees.
	err := n.run(ctx, job, func(ctx context.Context, cursor int64) error {
		_, err := n.client.JobUpdate(ctx, row.ID, &river.JobUpdateParams{Output: cursor})
		return err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, feedcache.ErrInvalid):
		return river.JobCancel(err) // it never will work
	}
	// An error would stay in the row with all those before it, and count as one
	// of a limited number of attempts.
	var tries struct {
		Snoozes int `json:"snoozes"`
	}
	if err := json.Unmarshal(row.Metadata, &tries); err != nil {
		return err
	}
	return river.JobSnooze(wait(tries.Snoozes))
}

// wait is the time until a job is run again. It is short at first: a Redis that
// restarts is away for a second or two.
func wait(tries int) time.Duration {
	return min(250*time.Millisecond<<min(tries, 6), 15*time.Second)
}

// backoff is for jobs whose worker crashed.
type backoff struct{}

// NextRetry returns when a job that failed is run again.
func (backoff) NextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(wait(len(job.Errors)))
}

// warnings passes on what River logs from warnings on. Below that it tells of
// its own coming and going.
type warnings struct{ slog.Handler }

// Enabled leaves out what is not worth a warning.
func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}
