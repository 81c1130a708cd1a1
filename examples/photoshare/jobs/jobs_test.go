package jobs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/jobs"
	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// victim is set in the process that TestAKilledProcess kills.
const victim = "PHOTOSHARE_JOBS_VICTIM"

func TestMain(m *testing.M) {
	if dsn := os.Getenv(victim); dsn != "" {
		if err := workForever(dsn); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	testserver.Main(m, testserver.NeedPostgres)
}

func nodes(dsns ...string) (nodes []shard.Node) {
	for i, dsn := range dsns {
		nodes = append(nodes, shard.Node{Name: string(rune('a' + i)), DSN: dsn})
	}
	return nodes
}

func openCluster(t *testing.T, nodes []shard.Node) *shard.Cluster {
	c, err := shard.Open(t.Context(), shard.Static(4, nodes...), shard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	_, err = c.Migrate(t.Context(), os.DirFS("testdata"), shard.MigrateConfig{})
	require.NoError(t, err)
	return c
}

func open(t *testing.T, c *shard.Cluster) *jobs.Queue {
	q, err := jobs.Open(t.Context(), c, jobs.Config{Log: slog.New(slog.DiscardHandler), Timeout: time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, q.Close()) })
	return q
}

// job returns a job of an author on a shard.
func job(shard int, ids ...int64) feedcache.Job {
	return feedcache.Job{Author: int64(shard<<10 + 1), IDs: ids, At: time.Now().UTC().Truncate(time.Second)}
}

// next returns the next job that is run.
func next(t *testing.T, ran <-chan feedcache.Job) feedcache.Job {
	select {
	case j := <-ran:
		return j
	case <-time.After(90 * time.Second):
		require.FailNow(t, "no job is run")
		panic("unreachable")
	}
}

// stored counts the jobs on a node in a state.
func stored(t *testing.T, dsn, state string) (n int) {
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	require.NoError(t, conn.QueryRow(t.Context(), "select count(*) from jobs.river_job where state = $1", state).Scan(&n))
	return n
}

func TestAJobCommitsWithItsTransaction(t *testing.T) {
	t.Parallel()
	c := openCluster(t, nodes(testserver.Postgres(t), testserver.Postgres(t)))
	q := open(t, c)
	ran := make(chan feedcache.Job, 10)
	require.NoError(t, q.Start(t.Context(), func(_ context.Context, j feedcache.Job, _ func(context.Context, int64) error) error {
		ran <- j
		return nil
	}))
	for _, n := range c.Map().Nodes {
		sh := c.Shards()[slices.IndexFunc(c.Shards(), func(sh shard.Shard) bool { return sh.Node() == n.Name })]
		lost, kept := job(sh.Number(), 1), job(sh.Number(), 2)
		changed := errors.New("changed its mind")
		require.ErrorIs(t, sh.InTx(t.Context(), func(tx pgx.Tx) error {
			require.NoError(t, q.EnqueueTx(t.Context(), tx, lost))
			return changed
		}), changed)
		require.NoError(t, sh.InTx(t.Context(), func(tx pgx.Tx) error { return q.EnqueueTx(t.Context(), tx, kept) }))
		require.Equal(t, kept, next(t, ran))
		require.NoError(t, q.Enqueue(t.Context(), kept), "an equal one is not stored")
		other := job(sh.Number(), 3)
		require.NoError(t, q.Enqueue(t.Context(), other))
		require.Equal(t, other, next(t, ran))
		require.Eventually(t, func() bool { return stored(t, n.DSN, "completed") == 2 }, 20*time.Second, 20*time.Millisecond, "on its node")
	}
	require.Empty(t, ran)
}

func TestAJobThatFailsGoesOnAtItsCursor(t *testing.T) {
	t.Parallel()
	q := open(t, openCluster(t, nodes(testserver.Postgres(t))))
	type attempt struct {
		after int64
		at    time.Time
	}
	attempts := make(chan attempt, 10)
	require.NoError(t, q.Start(t.Context(), func(ctx context.Context, j feedcache.Job, save func(context.Context, int64) error) error {
		attempts <- attempt{j.After, time.Now()}
		switch j.After {
		case 0:
			return errors.New("not yet") // before a cursor
		case math.MaxInt64:
			return nil
		case 7:
			// It takes more than its time.
			_ = save(ctx, math.MaxInt64)
			<-ctx.Done()
			return ctx.Err()
		}
		if err := save(ctx, 7); err != nil {
			return err
		}
		panic("half-way")
	}))
	first := job(0, 1)
	require.NoError(t, q.Enqueue(t.Context(), first))
	begin := (<-attempts).at
	for range 2 {
		require.Zero(t, (<-attempts).after)
	}
	require.Less(t, time.Since(begin), 10*time.Second, "the first attempts come soon")
	resumed := job(1, 1)
	resumed.After = 3
	require.NoError(t, q.Enqueue(t.Context(), resumed))
	var after []int64
	for len(after) < 3 {
		if a := (<-attempts).after; a != 0 {
			after = append(after, a)
		}
	}
	require.Equal(t, []int64{3, 7, math.MaxInt64}, after)
}

func TestAJobThatCloseCutsOffGoesOn(t *testing.T) {
	t.Parallel()
	c := openCluster(t, nodes(testserver.Postgres(t)))
	q := open(t, c)
	saved := make(chan struct{})
	require.NoError(t, q.Start(t.Context(), func(ctx context.Context, _ feedcache.Job, save func(context.Context, int64) error) error {
		err := save(ctx, 5)
		close(saved)
		<-ctx.Done()
		return errors.Join(err, ctx.Err())
	}))
	want := job(3, 1)
	require.NoError(t, q.Enqueue(t.Context(), want))
	<-saved
	require.NoError(t, q.Close())
	require.NoError(t, q.Close(), "twice is once")
	ran := make(chan feedcache.Job, 10)
	require.NoError(t, open(t, c).Start(t.Context(), func(_ context.Context, j feedcache.Job, _ func(context.Context, int64) error) error {
		ran <- j
		return nil
	}))
	want.After = 5
	require.Equal(t, want, next(t, ran))
}

// TestAKilledProcess kills a process that has a job, and lets another one
// have it.
func TestAKilledProcess(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	q := open(t, openCluster(t, nodes(dsn)))
	want := job(2, 1, 2)
	require.NoError(t, q.Enqueue(t.Context(), want))

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victim+"="+dsn)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.NoError(t, err)
	require.Equal(t, "saved", strings.TrimSpace(line))

	ran := make(chan feedcache.Job, 10)
	require.NoError(t, q.Start(t.Context(), func(_ context.Context, j feedcache.Job, _ func(context.Context, int64) error) error {
		ran <- j
		return nil
	}))
	want.After = 4711
	require.Equal(t, want, next(t, ran))
}

// workForever saves the cursor of the first job that it gets and hangs.
func workForever(dsn string) error {
	ctx := context.Background()
	c, err := shard.Open(ctx, shard.Static(4, nodes(dsn)...), shard.Config{})
	if err != nil {
		return err
	}
	q, err := jobs.Open(ctx, c, jobs.Config{})
	if err != nil {
		return err
	}
	err = q.Start(ctx, func(ctx context.Context, _ feedcache.Job, save func(context.Context, int64) error) error {
		if err := save(ctx, 4711); err != nil {
			return err
		}
		fmt.Println("saved")
		select {}
	})
	if err != nil {
		return err
	}
	select {}
}

func TestTwoProcessesOpenTheQueueAtOnce(t *testing.T) {
	t.Parallel()
	c := openCluster(t, nodes(testserver.Postgres(t)))
	errs := make(chan error, 6)
	for range cap(errs) {
		go func() {
			q, err := jobs.Open(t.Context(), c, jobs.Config{})
			if err == nil {
				err = q.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
}

func TestOpenRefusesWhatIsWrong(t *testing.T) {
	t.Parallel()
	c := openCluster(t, nodes(testserver.Postgres(t)))
	for _, cfg := range []jobs.Config{{Workers: -1}, {Workers: 101}, {Timeout: time.Millisecond}} {
		_, err := jobs.Open(t.Context(), c, cfg)
		require.ErrorContains(t, err, "jobs: Config.")
	}
	_, err := jobs.Open(t.Context(), nil, jobs.Config{})
	require.Error(t, err)
	away, err := shard.Open(t.Context(), shard.Static(1, shard.Node{Name: "a", DSN: "postgres://someone:secret@127.0.0.1:1/x"}), shard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, away.Close()) })
	_, err = jobs.Open(t.Context(), away, jobs.Config{})
	require.ErrorContains(t, err, "jobs: open node a")
	require.NotContains(t, err.Error(), "secret")
}

func TestAFailureLeavesNoTraceAndNoLimit(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	q := open(t, openCluster(t, nodes(dsn)))
	require.NoError(t, q.Enqueue(t.Context(), job(0, 1), job(0, 2)))
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.WithoutCancel(t.Context()))
	// As one that has crashed more often than any will.
	_, err = conn.Exec(t.Context(), "update jobs.river_job set attempt = max_attempts - 1")
	require.NoError(t, err)
	var tries atomic.Int64
	done := make(chan struct{}, 1)
	require.NoError(t, q.Start(t.Context(), func(_ context.Context, j feedcache.Job, _ func(context.Context, int64) error) error {
		switch {
		case j.IDs[0] == 2:
			return fmt.Errorf("it never works: %w", feedcache.ErrInvalid)
		case tries.Add(1) < 4:
			return errors.New("Redis is away")
		}
		done <- struct{}{}
		return nil
	}))
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		require.FailNow(t, "the job was given up", "after %d tries", tries.Load())
	}
	require.Eventually(t, func() bool {
		return stored(t, dsn, "completed") == 1 && stored(t, dsn, "cancelled") == 1
	}, 30*time.Second, 50*time.Millisecond)
	var traces int
	require.NoError(t, conn.QueryRow(t.Context(), "select coalesce(sum(cardinality(errors)), 0) from jobs.river_job where state = 'completed'").Scan(&traces))
	require.Zero(t, traces)
}
