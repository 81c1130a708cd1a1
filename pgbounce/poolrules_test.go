package pgbounce_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	gosync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// waitsFor has a client ask, and waits until it is in the queue.
func waitsFor(t *testing.T, f *front, k *talk, sql string, waiters int) {
	t.Helper()
	require.NoError(t, k.write(encode(query(sql))))
	eventually(t, fmt.Sprintf("%d wait", waiters), func() bool { return f.Census().Waiters == waiters })
}

func TestOrderOfServers(t *testing.T) {
	t.Parallel()
	for _, roundRobin := range []bool{false, true} {
		t.Run(fmt.Sprintf("RoundRobin=%t", roundRobin), func(t *testing.T) {
			t.Parallel()
			cfg := only(t, testserver.Postgres(t))
			cfg.Loops, cfg.ServerRoundRobin = 1, roundRobin
			f := newFront(t, cfg)
			var pids []string
			var all []*talk
			for range 3 {
				k := f.client(t, 0)
				k.do(t, "begin")
				all, pids = append(all, k), append(pids, k.pid(t))
			}
			for _, k := range all {
				k.do(t, "commit")
			}
			if roundRobin {
				require.Equal(t, pids, []string{all[0].pid(t), all[0].pid(t), all[0].pid(t)})
			} else {
				require.Equal(t, []string{pids[2], pids[2]}, []string{all[0].pid(t), all[1].pid(t)})
			}
		})
	}
}

func TestOrderOfWaiters(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := adminOf(t, dsn)
	_, err := admin.Exec(t.Context(), "create sequence turn")
	require.NoError(t, err)
	cfg := only(t, dsn)
	cfg.PoolSize, cfg.Loops = 1, 3
	f := newFront(t, cfg)
	require.NoError(t, f.StartLoops(3))
	holder := f.client(t, 0)
	holder.do(t, "begin")
	var all []*talk
	for i := range 8 {
		k := f.client(t, i)
		waitsFor(t, f, k, "select nextval('turn')", i+1)
		all = append(all, k)
	}
	all[3].conn.Close() // leaves the queue
	holder.do(t, "commit")
	last := 0
	for i, k := range all {
		if i == 3 {
			continue
		}
		a, err := k.answer(1)
		require.NoError(t, err)
		turn, err := strconv.Atoi(a.rows[0])
		require.NoError(t, err)
		require.Greater(t, turn, last, "waiter %d", i)
		last = turn
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	const backends = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
	t.Run("MinPoolSize", func(t *testing.T) {
		t.Parallel()
		dsn := testserver.Postgres(t)
		cfg := only(t, dsn)
		cfg.MinPoolSize = 3
		f, admin := newFront(t, cfg), adminOf(t, dsn)
		f.client(t, 0).do(t, "select 1")
		eventually(t, "three servers", func() bool { return one[int](t, admin, backends) == 3 })
	})
	t.Run("MinPoolSizeWithoutClients", func(t *testing.T) {
		t.Parallel()
		dsn := testserver.Postgres(t)
		cfg := only(t, dsn)
		db := cfg.Databases["db"]
		db.User, db.MinPoolSize = "postgres", 2
		cfg.Databases["db"] = db
		f, admin := newFront(t, cfg), adminOf(t, dsn)
		require.NoError(t, f.StartLoops(1))
		eventually(t, "two servers", func() bool { return one[int](t, admin, backends) == 2 })
	})
	t.Run("Reserve", func(t *testing.T) {
		t.Parallel()
		dsn := testserver.Postgres(t)
		cfg := only(t, dsn)
		cfg.PoolSize, cfg.ReservePoolSize, cfg.ReservePoolTimeout = 1, 1, time.Second
		f, admin := newFront(t, cfg), adminOf(t, dsn)
		f.client(t, 0).do(t, "begin")
		began := time.Now()
		k := f.client(t, 1)
		k.do(t, "begin")
		require.GreaterOrEqual(t, time.Since(began), time.Second)
		waitsFor(t, f, f.client(t, 2), "select 1", 1)
		time.Sleep(1500 * time.Millisecond) // a condition that is not to come
		require.Equal(t, 2, one[int](t, admin, backends))
	})
	t.Run("Idle", func(t *testing.T) {
		t.Parallel()
		dsn := testserver.Postgres(t)
		cfg := only(t, dsn)
		cfg.ServerIdleTimeout = 300 * time.Millisecond
		f, admin := newFront(t, cfg), adminOf(t, dsn)
		f.client(t, 0).do(t, "select 1")
		require.Equal(t, 1, one[int](t, admin, backends))
		eventually(t, "no servers", func() bool { return one[int](t, admin, backends) == 0 })
	})
	t.Run("Lifetime", func(t *testing.T) {
		t.Parallel()
		cfg := only(t, testserver.Postgres(t))
		cfg.ServerLifetime, cfg.PoolSize = 500*time.Millisecond, 1
		f := newFront(t, cfg)
		k := f.client(t, 0)
		k.do(t, "begin")
		pid := k.pid(t)
		k.do(t, "select pg_sleep(0.6)")
		require.Equal(t, pid, k.pid(t), "inside a transaction")
		k.do(t, "commit")
		require.NotEqual(t, pid, k.pid(t))
	})
}

// The limit of a database is shared by its users, that of a user by its
// databases.
func TestSharedLimits(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := adminOf(t, dsn)
	role := admin.Config().Database + "_other"
	_, err := admin.Exec(t.Context(), "create role "+role+" login")
	require.NoError(t, err)
	t.Cleanup(func() { admin.Exec(context.Background(), "drop role "+role) })
	const limit = 4
	load := func(t *testing.T, f *front, enter func(i int) (*talk, error)) (counts [2]int64) {
		t.Helper()
		var n [2]atomic.Int64
		var group gosync.WaitGroup
		var over atomic.Bool
		for i := range 20 {
			k, err := enter(i)
			require.NoError(t, err)
			t.Cleanup(func() { k.conn.Close() })
			group.Go(func() {
				for !over.Load() {
					if k.write(encode(query("select 1 from pg_sleep(0.005)"))) != nil {
						return
					}
					if a, err := k.answer(1); err != nil || len(a.rows) != 1 {
						return
					}
					n[i%2].Add(1)
				}
			})
		}
		defer group.Wait()
		defer over.Store(true)
		// Who came first has all servers at first, until others have logged in.
		eventually(t, "both go on", func() bool { return min(n[0].Load(), n[1].Load()) > 50 })
		before := [2]int64{n[0].Load(), n[1].Load()}
		for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			require.LessOrEqual(t, f.Census().Places, limit)
		}
		return [2]int64{n[0].Load() - before[0], n[1].Load() - before[1]}
	}
	t.Run("Database", func(t *testing.T) {
		cfg := only(t, dsn)
		cfg.MaxDatabaseServers = limit
		f := newFront(t, cfg)
		n := load(t, f, func(i int) (*talk, error) { return f.enter(i, []string{"postgres", role}[i%2], "db") })
		t.Log(n)
		require.LessOrEqual(t, max(n[0], n[1]), 2*min(n[0], n[1]))
		f.Close()
	})
	t.Run("User", func(t *testing.T) {
		cfg := only(t, dsn)
		cfg.Databases["again"] = cfg.Databases["db"]
		cfg.MaxUserServers = limit
		f := newFront(t, cfg)
		n := load(t, f, func(i int) (*talk, error) { return f.enter(i, "postgres", []string{"db", "again"}[i%2]) })
		t.Log(n)
		require.NotZero(t, min(n[0], n[1]))
	})
	t.Run("UserThatWasIdle", func(t *testing.T) {
		cfg := only(t, dsn)
		cfg.Databases["again"] = cfg.Databases["db"]
		cfg.MaxUserServers = 1
		f := newFront(t, cfg)
		f.client(t, 0).do(t, "select 1")
		k, err := f.enter(1, "postgres", "again")
		require.NoError(t, err)
		defer k.conn.Close()
		require.Equal(t, "1", k.get(t, "select 1"))
	})
}

func TestLimitsOfClients(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, text string
		limit      func(*pgbounce.Config)
	}{
		{"MaxClients", "no more connections allowed (max_client_conn)", func(c *pgbounce.Config) { c.MaxClients = 2 }},
		{"MaxDatabaseClients", "client connections exceeded (max_db_client_connections)", func(c *pgbounce.Config) { c.MaxDatabaseClients = 2 }},
		{"MaxUserClients", "client connections exceeded (max_user_client_connections)", func(c *pgbounce.Config) { c.MaxUserClients = 2 }},
	}
	dsn := testserver.Postgres(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg := only(t, dsn)
			tt.limit(&cfg)
			f := newFront(t, cfg)
			first := f.client(t, 0)
			f.client(t, 1)
			for way := range 3 {
				_, err := f.enter(way, "postgres", "db")
				require.ErrorContains(t, err, tt.text)
				require.ErrorContains(t, err, "53300")
			}
			first.conn.Close()
			eventually(t, "there is room again", func() bool {
				k, err := f.enter(0, "postgres", "db")
				if err == nil {
					k.conn.Close()
				}
				return err == nil
			})
		})
	}
}

// A crew is clients that ask without end, and what they are told if it is not
// their answer.
type crew struct {
	over  atomic.Bool
	asked atomic.Int64
	group gosync.WaitGroup
	mu    gosync.Mutex
	told  []string
}

func newCrew(t *testing.T, f *front, n int) *crew {
	t.Helper()
	c := &crew{}
	for i := range n {
		k := f.client(t, i)
		c.group.Go(func() {
			for n := 0; !c.over.Load(); n++ {
				nonce := fmt.Sprintf("crew %d.%d", i, n)
				err := k.write(encode(query("begin"), query("select '"+nonce+"'"), query("commit")))
				a, readErr := k.answer(3)
				if err = errors.Join(err, readErr); err != nil || len(a.codes) > 0 || !slices.Equal(a.rows, []string{nonce}) {
					c.mu.Lock()
					c.told = append(c.told, fmt.Sprintf("%v %v", a, err))
					c.mu.Unlock()
					return
				}
				c.asked.Add(1)
			}
		})
	}
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *crew) stop() []string {
	c.over.Store(true)
	c.group.Wait()
	return c.told
}

// progress waits until all goes on.
func (c *crew) progress(t *testing.T) {
	t.Helper()
	goal := c.asked.Load() + 100
	eventually(t, "the clients go on", func() bool { return c.asked.Load() > goal })
}

// What an admin does under load disturbs nobody who need not be.
func TestControls(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	admin := adminOf(t, dsn)
	cfg := only(t, dsn)
	cfg.PoolSize, cfg.Loops, cfg.QuietConnections = 4, 2, true
	f := newFront(t, cfg)
	require.NoError(t, f.StartLoops(2))
	cfg.Log = f.logger
	c := newCrew(t, f, 12)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	pids := func() (all []int) {
		rows, err := admin.Query(ctx, "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		require.NoError(t, err)
		for rows.Next() {
			var pid int
			require.NoError(t, rows.Scan(&pid))
			all = append(all, pid)
		}
		require.NoError(t, rows.Err())
		return all
	}
	for range 3 {
		c.progress(t)
		require.NoError(t, f.Pause(ctx, ""))
		eventually(t, "no servers", func() bool { return len(pids()) == 0 })
		asked := c.asked.Load()
		require.ErrorIs(t, f.Pause(ctx, ""), pgbounce.ErrState)
		require.LessOrEqual(t, c.asked.Load(), asked+12)
		require.NoError(t, f.Resume(""))
		require.ErrorIs(t, f.Resume(""), pgbounce.ErrState)
		c.progress(t)
		require.NoError(t, f.Pause(ctx, "db"))
		require.NoError(t, f.Resume("db"))
		c.progress(t)
		before := pids()
		require.NoError(t, f.Reconnect("db"))
		require.NoError(t, f.WaitClose(ctx, "db"))
		eventually(t, "all servers are new", func() bool {
			return !slices.ContainsFunc(pids(), func(pid int) bool { return slices.Contains(before, pid) })
		})
		c.progress(t)
		require.NoError(t, f.Suspend(ctx))
		require.NoError(t, f.Resume(""))
		c.progress(t)
		require.NoError(t, f.Disable("db"))
		_, err := f.enter(0, "postgres", "db")
		require.ErrorContains(t, err, "disabled")
		c.progress(t)
		require.NoError(t, f.Enable("db"))
		more := cfg
		more.PoolSize = 8
		require.NoError(t, f.Reload(more))
		c.progress(t)
		require.Error(t, f.Reload(pgbounce.Config{PoolSize: -1}))
		more.Databases = only(t, dsn).Databases
		db := more.Databases["db"]
		db.ConnectQuery = "set work_mem = '5MB'"
		more.Databases["db"] = db
		require.NoError(t, f.Reload(more))
		require.NoError(t, f.WaitClose(ctx, "db"))
		require.Equal(t, "5MB", f.client(t, 0).get(t, "show work_mem"))
		require.NoError(t, f.Reload(cfg))
		c.progress(t)
	}
	require.ErrorIs(t, f.Pause(ctx, "absent"), pgbounce.ErrUnknownDatabase)
	require.ErrorIs(t, f.KillClient(1<<40), pgbounce.ErrUnknownClient)
	require.Empty(t, c.stop())
}

func TestKill(t *testing.T) {
	t.Parallel()
	f := newFront(t, only(t, testserver.Postgres(t)))
	idle, busy := f.client(t, 0), f.client(t, 1)
	busy.do(t, "begin")
	require.NoError(t, f.Kill("db"))
	require.Equal(t, "database removed", idle.last(t))
	require.Equal(t, "database removed", busy.last(t))
	require.Zero(t, f.Census().Servers)
	require.NoError(t, f.Resume("db"))
	k := f.client(t, 2)
	require.Equal(t, "1", k.get(t, "select 1"))
	// Ids are given in the order of logins, to clients and servers alike.
	_, rest, _ := strings.Cut(f.log.all()[strings.LastIndex(f.log.all(), "login attempt"):], "client=")
	id, _, _ := strings.Cut(rest, " ")
	number, err := strconv.ParseUint(id, 10, 64)
	require.NoError(t, err)
	require.NoError(t, f.KillClient(number))
	require.Equal(t, "admin forced disconnect", k.last(t))
}

// ends waits for what a method returns.
func ends(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatal("it does not end")
		return nil
	}
}

// letsIn tells whether a client can come in now. It leaves again.
func (f *front) letsIn(t *testing.T) bool {
	k, err := f.enter(2, "postgres", "db")
	if err == nil {
		require.NoError(t, k.conn.Close())
	}
	return err == nil
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	t.Run("AfterTransactions", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, only(t, dsn))
		idle, busy := f.client(t, 0), f.client(t, 1)
		busy.do(t, "begin")
		done := make(chan error, 1)
		go func() { done <- f.Shutdown(context.Background()) }()
		eventually(t, "no more are let in", func() bool { return !f.letsIn(t) })
		require.Equal(t, "1", busy.get(t, "select 1"))
		busy.do(t, "commit")
		require.NoError(t, ends(t, done))
		require.Equal(t, "pooler is shutting down", idle.last(t))
		require.Equal(t, "pooler is shutting down", busy.last(t))
	})
	t.Run("AfterClients", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, only(t, dsn))
		k := f.client(t, 0)
		done := make(chan error, 1)
		go func() { done <- f.ShutdownClients(context.Background()) }()
		eventually(t, "no more are let in", func() bool { return !f.letsIn(t) })
		require.Equal(t, "1", k.get(t, "select 1"))
		select {
		case <-done:
			t.Fatal("it does not wait for the client")
		default:
		}
		k.conn.Close()
		require.NoError(t, ends(t, done))
	})
	t.Run("WithoutPatience", func(t *testing.T) {
		t.Parallel()
		f := newFront(t, only(t, dsn))
		busy := f.client(t, 0)
		busy.do(t, "begin")
		ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer stop()
		require.ErrorIs(t, f.Shutdown(ctx), context.DeadlineExceeded)
		require.Equal(t, "pooler is shutting down", busy.last(t))
	})
	t.Run("UnderLoad", func(t *testing.T) {
		t.Parallel()
		cfg := only(t, dsn)
		cfg.Loops, cfg.PoolSize, cfg.QuietConnections = 2, 3, true
		f := newFront(t, cfg)
		require.NoError(t, f.StartLoops(2))
		c := newCrew(t, f, 12)
		c.progress(t)
		require.NoError(t, f.Shutdown(t.Context()))
		for _, told := range c.stop() {
			require.Contains(t, told, "pooler is shutting down")
		}
	})
}

func TestPins(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	statements := []string{
		"listen photos", "select pg_advisory_lock(1)", "create temp table scratch (id int)",
		"declare c cursor with hold for select 1",
	}
	tests := []struct {
		pins   pgbounce.Pins
		name   string
		same   bool // the server
		code   string
		warned bool
	}{
		{pgbounce.PinWarn, "Warn", false, "", true},
		{pgbounce.PinServer, "Server", true, "", false},
		{pgbounce.PinRefuse, "Refuse", false, "0A000", false},
		{pgbounce.PinIgnore, "Ignore", false, "", false},
	}
	for _, tt := range tests {
		for i, sql := range statements {
			for _, extended := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/extended=%t", tt.name, i, extended), func(t *testing.T) {
					t.Parallel()
					cfg := only(t, dsn)
					cfg.Pins, cfg.ServerRoundRobin, cfg.Loops = tt.pins, true, 1
					f := newFront(t, cfg)
					k, other := f.client(t, 0), f.client(t, 1)
					other.do(t, "begin")
					pid := k.pid(t)
					other.do(t, "commit") // two servers, by turns
					var a answer
					if extended {
						a = k.ask(t, parse("s", sql), bind("", "s"), execute(""), sync)
					} else {
						a = k.ask(t, query(sql))
					}
					if tt.code != "" {
						require.Equal(t, []string{tt.code}, a.codes)
						require.Equal(t, "1", k.get(t, "select 1"))
						return
					}
					require.Empty(t, a.codes, a.String())
					first, second := k.pid(t), k.pid(t)
					require.Equal(t, tt.same, first == second, "%s, then %s and %s", pid, first, second)
					require.Equal(t, tt.warned, strings.Contains(f.log.all(), "outlives a transaction"))
				})
			}
		}
	}
}

// nodes is a Router of two.
type nodes map[string]string

func (n nodes) Node(_, shard string, readOnly bool) (string, error) {
	node, ok := n[shard]
	switch {
	case !ok:
		return "", fmt.Errorf("no shard %q", shard)
	case readOnly:
		return "replica", nil
	}
	return node, nil
}

func TestRouting(t *testing.T) {
	t.Parallel()
	one, two := testserver.Postgres(t), testserver.Postgres(t)
	cfg := only(t, one)
	cfg.Databases["one"], cfg.Databases["two"], cfg.Databases["replica"] = databaseAt(t, one), databaseAt(t, two), databaseAt(t, two)
	here, there := cfg.Databases["one"].Name, cfg.Databases["two"].Name
	cfg.Router = nodes{"1": "one", "2": "two", "3": "absent"}
	f := newFront(t, cfg)
	const where = "select current_database()"
	k := f.client(t, 0)
	require.Equal(t, here, k.get(t, where))
	for _, sql := range []string{"set pgbounce.shard = '2'", "SET pgbounce.shard TO 2;", "set session pgbounce.shard = \"2\""} {
		k.do(t, "reset pgbounce.shard")
		require.Equal(t, here, k.get(t, where))
		k.do(t, sql)
		require.Equal(t, there, k.get(t, where), sql)
	}
	// A transaction stays where it began.
	k.do(t, "begin")
	k.do(t, "set pgbounce.shard = 1")
	require.Equal(t, there, k.get(t, where))
	k.do(t, "commit")
	require.Equal(t, here, k.get(t, where))
	// An unknown shard is an error, and the connection goes on.
	for _, shard := range []string{"9", "3"} {
		k.do(t, "set pgbounce.shard = "+shard)
		a := k.ask(t, query(where))
		require.Len(t, a.codes, 1)
		a = k.ask(t, parse("", where), bind("", ""), execute(""), sync)
		require.Equal(t, "EZ", a.kinds)
	}
	// In the extended protocol.
	a := k.ask(t, parse("go", "set pgbounce.shard = '2'"), bind("", "go"), execute(""), sync)
	require.Empty(t, a.codes, a.String())
	require.Equal(t, there, k.get(t, where))
	k.do(t, "set pgbounce.shard = 1; ")
	k.ask(t, bind("", "go"), execute(""), sync)
	require.Equal(t, there, k.get(t, where))
	// At startup, and read-only.
	require.Equal(t, there, f.client(t, 1, "pgbounce.shard", "2").get(t, where))
	require.Equal(t, there, f.client(t, 2, "options", "-c pgbounce.shard=2").get(t, where))
	require.Equal(t, there, f.client(t, 0, "pgbounce.shard", "1", "pgbounce.read_only", "on").get(t, where))
	// Without a Router.
	cfg.Router = nil
	db := cfg.Databases["db"]
	db.ReadOnly = "two"
	cfg.Databases["db"] = db
	g := newFront(t, cfg)
	k = g.client(t, 0)
	k.do(t, "set pgbounce.read_only = on")
	require.Equal(t, there, k.get(t, where))
	k.do(t, "set pgbounce.read_only = off")
	require.Equal(t, here, k.get(t, where))
	k.do(t, "set pgbounce.shard = 1")
	require.Len(t, k.ask(t, query(where)).codes, 1)
	k.do(t, "set pgbounce.shard to default")
	require.Equal(t, here, k.get(t, where))
}
