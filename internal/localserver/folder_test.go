package localserver_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/stretchr/testify/require"
)

func TestFolderIsLocked(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	h, err := localserver.Open(localserver.Config{Dir: dir})
	require.NoError(t, err)
	_, err = localserver.Open(localserver.Config{Dir: dir})
	var inUse *localserver.InUseError
	require.ErrorAs(t, err, &inUse)
	require.Equal(t, localserver.InUseError{Dir: dir, PID: os.Getpid()}, *inUse)

	require.NoError(t, h.Close())
	require.DirExists(t, dir)
	again, err := localserver.Open(localserver.Config{Dir: dir})
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

// A folder below one of mode 0700 is out of reach for the user that a server
// of root runs as, and fine for everybody else.
func TestFolderOutOfReach(t *testing.T) {
	t.Parallel()
	private := folder(t)
	require.NoError(t, os.Chmod(private, 0o700))
	h := open(t, localserver.Config{Dir: filepath.Join(private, "servers"), Fast: true})
	_, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	if os.Geteuid() != 0 {
		require.NoError(t, err)
		return
	}
	require.ErrorContains(t, err, "user nobody, as whom the server runs because we are root, cannot enter "+
		private+" (mode 0700)")
	require.ErrorContains(t, err, "chmod o+x "+private)

	require.NoError(t, os.Chmod(private, 0o711))
	_, err = h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
}

func TestFolderThroughALink(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "real"), 0o711))
	require.NoError(t, os.Symlink("real", filepath.Join(dir, "link")))
	h := open(t, localserver.Config{Dir: filepath.Join(dir, "link"), Fast: true})
	_, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
}

func TestDurableDataIsFoundAgain(t *testing.T) {
	t.Parallel()
	dir := folder(t)

	h, err := localserver.Open(localserver.Config{Dir: dir})
	require.NoError(t, err)
	defer h.Close()
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	c := connect(t, p)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		require.Equal(t, "on", queryText(t, c, "select current_setting($1)", setting))
	}
	_, err = c.Exec(t.Context(), "create table photo as select 'sunset' as title")
	require.NoError(t, err)
	r, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	require.NoError(t, redisClient(t, r).Set(t.Context(), "title", "sunset", 0).Err())

	// No good-bye: what was acknowledged must be there all the same.
	require.NoError(t, p.Kill())
	require.NoError(t, r.Kill())
	require.NoError(t, h.Close())
	require.FileExists(t, filepath.Join(dir, "db/data/postmaster.pid"))

	h = open(t, localserver.Config{Dir: dir})
	p, err = h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	require.Equal(t, "sunset", queryText(t, connect(t, p), "select title from photo"))
	r, err = h.Redis(t.Context(), "cache", localserver.RedisConfig{})
	require.NoError(t, err)
	require.Equal(t, "sunset", redisClient(t, r).Get(t.Context(), "title").Val())
}

// After a crash the number in postmaster.pid may belong to another process.
func TestStalePostmasterPID(t *testing.T) {
	t.Parallel()
	h := open(t, localserver.Config{Fast: true})
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	other, err := h.Postgres(t.Context(), "other", localserver.PostgresConfig{})
	require.NoError(t, err)
	require.NotEqual(t, p.Port(), other.Port())
	path := filepath.Join(h.Dir(), "db/data/postmaster.pid")
	rewrite := func(pid string) {
		_, rest, ok := strings.Cut(readFile(t, path), "\n")
		require.True(t, ok)
		require.NoError(t, os.WriteFile(path, []byte(pid+"\n"+rest), 0o600))
	}

	// One of the same user, which PostgreSQL itself would take for a server.
	require.NoError(t, p.Kill())
	pid, _, _ := strings.Cut(readFile(t, filepath.Join(h.Dir(), "other/data/postmaster.pid")), "\n")
	rewrite(pid)
	require.NoError(t, p.Restart(t.Context()))

	// One that really works in the data folder is left alone.
	require.NoError(t, p.Kill())
	squatter := exec.Command("sleep", "60")
	squatter.Dir = filepath.Join(h.Dir(), "db/data")
	require.NoError(t, squatter.Start())
	defer squatter.Wait()
	defer squatter.Process.Kill()
	rewrite(strconv.Itoa(squatter.Process.Pid))
	require.ErrorContains(t, p.Restart(t.Context()), "process "+strconv.Itoa(squatter.Process.Pid)+" already serves")
}

func TestReplicaAndPrimaryFoldersAreNotMixedUp(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	h, err := localserver.Open(localserver.Config{Dir: dir, Fast: true})
	require.NoError(t, err)
	defer h.Close()
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	_, err = h.PostgresReplica(t.Context(), "db-copy", p)
	require.NoError(t, err)
	require.NoError(t, h.Close())

	h = open(t, localserver.Config{Dir: dir, Fast: true})
	_, err = h.Postgres(t.Context(), "db-copy", localserver.PostgresConfig{})
	require.ErrorContains(t, err, "its folder holds a replica")
	p, err = h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	// The primary has another port than when the copy was made.
	copied, err := h.PostgresReplica(t.Context(), "db-copy", p)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(p.Port()), queryText(t, connect(t, copied), "select sender_port::text from pg_stat_wal_receiver"))

	require.NoError(t, copied.Promote(t.Context()))
	require.NoError(t, h.Close())
	h = open(t, localserver.Config{Dir: dir, Fast: true})
	p, err = h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	_, err = h.PostgresReplica(t.Context(), "db-copy", p)
	require.ErrorContains(t, err, "its folder holds a primary")
}

const helperVariable = "LOCALSERVER_TEST_HELPER"

// The whole point: our process is killed without a chance to clean up, while
// one backend computes, a server is paused, and another server is idle.
func TestServersDieWithTheirParent(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()

	text := make([]byte, 4096)
	n, err := out.Read(text) // the folder, once all is up
	require.NoError(t, err)
	dir := strings.TrimSpace(string(text[:n]))
	require.DirExists(t, dir)

	all := descendants(t, cmd.Process.Pid)
	t.Cleanup(func() { // if we fail
		for pid := range all {
			if alive(pid) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	names := map[string]int{}
	for _, name := range all {
		names[name]++
	}
	require.Equal(t, 3, names["redis-server"], "%v", names)
	require.Equal(t, 1, names["memcached"], "%v", names)
	require.Equal(t, 1, names["pgbouncer"], "%v", names)
	require.Equal(t, 1, names["sh"], "%v", names)
	require.Greater(t, names["postgres"], 2*6, "%v", names)

	require.NoError(t, cmd.Process.Kill())
	eventually(t, func() bool {
		for pid := range all {
			if alive(pid) {
				return false
			}
		}
		return true
	}, "a server outlives its parent")

	// The folder is removed by the next who opens one, and with it the shared
	// memory that killed servers leave behind.
	segments := []string{shmID(t, dir, "busy"), shmID(t, dir, "paused")}
	for _, id := range segments {
		require.Contains(t, shmIDs(t), id)
	}
	open(t, localserver.Config{})
	require.NoDirExists(t, dir)
	for _, id := range segments {
		require.NotContains(t, shmIDs(t), id)
	}
}

// TestAFolderIsInUseUntilTheGuardHasFinished kills a process and opens its folder
// again at once. Its guard, which has a lot to look at, would take the new servers
// for the old ones.
func TestAFolderIsInUseUntilTheGuardHasFinished(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	for i := range 300 {
		fake := filepath.Join(dir, fmt.Sprint("fake-", i))
		require.NoError(t, os.Mkdir(fake, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(fake, "log"), nil, 0o600))
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVariable+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 64)) // all is up
	require.NoError(t, err)
	guard := 0
	for pid, name := range descendants(t, cmd.Process.Pid) {
		if name == "sh" {
			guard = pid
		}
	}
	require.NoError(t, cmd.Process.Kill())
	cmd.Wait()
	require.True(t, alive(guard), "the guard is quicker than the test")

	h, err := localserver.Open(localserver.Config{Dir: dir, Fast: true})
	require.NoError(t, err, "a process that is gone does not use the folder")
	require.False(t, alive(guard))
	_, err = h.Redis(t.Context(), "one", localserver.RedisConfig{})
	require.NoError(t, err)
	require.NoError(t, h.Close())
}

// smallHelper is a process with one server in a folder.
func smallHelper(dir string) {
	h, err := localserver.Open(localserver.Config{Dir: dir, Fast: true})
	if err == nil {
		_, err = h.Redis(context.Background(), "one", localserver.RedisConfig{})
	}
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

// helper is the process that TestServersDieWithTheirParent kills.
func helper() {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	ctx := context.Background()
	h, err := localserver.Open(localserver.Config{Fast: true})
	must(err)
	busy, err := h.Postgres(ctx, "busy", localserver.PostgresConfig{})
	must(err)
	_, err = h.PgBouncer(ctx, "pool", localserver.PgBouncerConfig{Of: busy})
	must(err)
	frozen, err := h.Postgres(ctx, "paused", localserver.PostgresConfig{})
	must(err)
	cache, err := h.Redis(ctx, "cache", localserver.RedisConfig{})
	must(err)
	frozenCache, err := h.Redis(ctx, "frozen-cache", localserver.RedisConfig{})
	must(err)
	_, err = h.Sentinel(ctx, "watch", localserver.SentinelConfig{Primary: cache})
	must(err)
	_, err = h.Memcached(ctx, "objects", localserver.MemcachedConfig{})
	must(err)

	// A backend in a loop looks neither at its client nor at its parent.
	connect := func(p *localserver.Postgres) *pgx.Conn {
		c, err := pgx.Connect(ctx, p.DSN("postgres"))
		must(err)
		return c
	}
	loop := connect(busy)
	go loop.Exec(ctx, "do $$ begin loop end loop; end $$")
	watch := connect(busy)
	for n := 0; n == 0; {
		must(watch.QueryRow(ctx, "select count(*) from pg_stat_activity where query like 'do %' and state = 'active'").Scan(&n))
	}
	connect(frozen)
	must(frozen.Pause())
	must(frozenCache.Pause())
	dir := h.Dir()
	for range 10 { // nobody holds the Host any more, which must not end it
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	_, err = os.Stdout.WriteString(dir + "\n")
	must(err)
	select {}
}

// descendants returns the processes below one, with their names.
func descendants(t *testing.T, root int) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	parent, name := map[int]int{}, map[int]string{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		head, tail, _ := strings.Cut(string(text), ") ")
		number, comm, _ := strings.Cut(head, " (")
		pid, err := strconv.Atoi(number)
		require.NoError(t, err)
		parent[pid], err = strconv.Atoi(strings.Fields(tail)[1])
		require.NoError(t, err)
		name[pid] = comm
	}
	below := map[int]string{}
	for pid := range parent {
		for up := pid; up > 1; up = parent[up] {
			if up == root && pid != root {
				below[pid] = name[pid]
			}
		}
	}
	return below
}

// alive reports whether a process runs or is paused; where nobody collects it,
// a dead one stays as a zombie.
func alive(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, tail, _ := strings.Cut(string(text), ") ")
	return tail[0] != 'Z' && tail[0] != 'X'
}

func shmID(t *testing.T, dir, name string) string {
	t.Helper()
	lines := strings.Split(readFile(t, filepath.Join(dir, name, "data/postmaster.pid")), "\n")
	return strings.Fields(lines[6])[1]
}

func shmIDs(t *testing.T) []string {
	t.Helper()
	var ids []string
	for line := range strings.Lines(readFile(t, "/proc/sysvipc/shm")) {
		ids = append(ids, strings.Fields(line)[1])
	}
	return ids
}
