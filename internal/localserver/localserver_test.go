package localserver_test

import (
	"context"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	switch dir := os.Getenv(helperVariable); dir {
	case "":
	case "1":
		helper()
	default:
		smallHelper(dir)
	}
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedPgBouncer, testserver.NeedRedis, testserver.NeedMemcached)
}

// open opens a host that is closed at the end of the test.
func open(t *testing.T, cfg localserver.Config) *localserver.Host {
	t.Helper()
	h, err := localserver.Open(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// folder makes a folder that the servers can reach also when we are root,
// which that of t.TempDir is not.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localserver-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return dir
}

// eventually waits for a condition.
func eventually(t *testing.T, condition func() bool, msg string) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 10*time.Millisecond, msg)
}

func connect(t *testing.T, p *localserver.Postgres) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), p.DSN("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func queryText(t *testing.T, c *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var text string
	require.NoError(t, c.QueryRow(t.Context(), sql, args...).Scan(&text))
	return text
}

func redisClient(t *testing.T, r *localserver.Redis) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1, ContextTimeoutEnabled: true})
	t.Cleanup(func() { c.Close() })
	return c
}

// infoPID asks a Redis for its process.
func infoPID(t *testing.T, r *localserver.Redis) int {
	t.Helper()
	text, err := redisClient(t, r).Info(t.Context(), "server").Result()
	require.NoError(t, err)
	match := regexp.MustCompile(`process_id:(\d+)`).FindStringSubmatch(text)
	require.NotNil(t, match)
	pid, err := strconv.Atoi(match[1])
	require.NoError(t, err)
	return pid
}

func TestServersAnswerAndLeaveNothing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	took := map[string]time.Duration{}
	h, err := localserver.Open(localserver.Config{
		Fast: true,
		Ready: func(s *localserver.Server, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			took[string(s.Kind())+" "+s.Name()] = d
		},
	})
	require.NoError(t, err)
	defer h.Close()

	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{
		Settings: map[string]string{"max_connections": "33"},
	})
	require.NoError(t, err)
	c := connect(t, p)
	require.Equal(t, "33", queryText(t, c, "show max_connections"))
	require.Equal(t, "off", queryText(t, c, "show fsync"))
	require.Equal(t, "logical", queryText(t, c, "show wal_level"))
	require.Equal(t, "UTF8 C.UTF-8", queryText(t, c,
		"select pg_encoding_to_char(encoding) || ' ' || datcollate from pg_database where datname = 'postgres'"))

	r, err := h.Redis(t.Context(), "cache", localserver.RedisConfig{
		Settings: map[string]string{"maxmemory": "7mb"},
	})
	require.NoError(t, err)
	settings, err := redisClient(t, r).ConfigGet(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(7<<20), settings["maxmemory"])
	require.Equal(t, "no", settings["appendonly"])
	require.Empty(t, settings["save"])

	m, err := h.Memcached(t.Context(), "objects", localserver.MemcachedConfig{Memory: 9, Args: []string{"-c", "77"}})
	require.NoError(t, err)
	client := memcache.New(m.Addr())
	defer client.Close()
	require.NoError(t, client.Ping())
	stats := ask(t, m.Addr(), "stats settings")
	require.Contains(t, stats, "STAT maxbytes "+strconv.Itoa(9<<20)+"\r\n")
	require.Contains(t, stats, "STAT maxconns 77\r\n")
	require.Contains(t, stats, "STAT udpport 0\r\n")

	for _, s := range []*localserver.Server{&p.Server, &r.Server, &m.Server} {
		require.Contains(t, took, string(s.Kind())+" "+s.Name())
		require.Positive(t, took[string(s.Kind())+" "+s.Name()])
		require.Equal(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port())), s.Addr())
		// A server that listened on all addresses would answer here too.
		_, err := net.Dial("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(s.Port())))
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	require.Equal(t, []*localserver.Server{&p.Server, &r.Server, &m.Server}, h.Servers())
	require.Contains(t, p.Log(), "database system is ready to accept connections")

	require.NoError(t, h.Close())
	require.NoError(t, h.Close(), "a second time")
	require.NoDirExists(t, h.Dir())
	for _, s := range h.Servers() {
		_, err := net.Dial("tcp", s.Addr())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	_, err = h.Redis(t.Context(), "late", localserver.RedisConfig{})
	require.ErrorIs(t, err, localserver.ErrClosed)
}

// ask sends a line to memcached and reads up to END.
func ask(t *testing.T, addr, line string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write([]byte(line + "\r\n"))
	require.NoError(t, err)
	var answer strings.Builder
	for buf := make([]byte, 4096); !strings.HasSuffix(answer.String(), "END\r\n"); {
		n, err := c.Read(buf)
		require.NoError(t, err)
		answer.Write(buf[:n])
	}
	return answer.String()
}

func TestServersRunAsAnOrdinaryUserInACleanEnvironment(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	p, err := h.Postgres(t.Context(), "db", localserver.PostgresConfig{})
	require.NoError(t, err)
	m, err := h.Memcached(t.Context(), "objects", localserver.MemcachedConfig{})
	require.NoError(t, err)

	pidOf := map[string]string{
		"db":      strings.Fields(readFile(t, filepath.Join(h.Dir(), "db/data/postmaster.pid")))[0],
		"objects": strings.Fields(ask(t, m.Addr(), "stats"))[2], // STAT pid 123
	}
	userOf := map[string]string{"db": "postgres", "objects": "nobody"}
	for _, s := range []*localserver.Server{&p.Server, &m.Server} {
		uid := strconv.Itoa(os.Geteuid())
		if os.Geteuid() == 0 {
			u, err := user.Lookup(userOf[s.Name()])
			require.NoError(t, err)
			uid = u.Uid
		}
		status := readFile(t, filepath.Join("/proc", pidOf[s.Name()], "status"))
		require.Contains(t, status, "\nUid:\t"+strings.Repeat(uid+"\t", 3)+uid+"\n")

		dir := filepath.Join(h.Dir(), s.Name())
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
		require.Equal(t, uid, strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid)))
	}
	info, err := os.Stat(h.Dir())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o711), info.Mode().Perm())

	environment := readFile(t, filepath.Join("/proc", pidOf["objects"], "environ"))
	require.ElementsMatch(t, []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + filepath.Join(h.Dir(), "objects"),
	}, strings.Split(strings.Trim(environment, "\x00"), "\x00"))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func TestServersStopInReverseOrder(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	h, err := localserver.Open(localserver.Config{Dir: dir, Fast: true})
	require.NoError(t, err)
	defer h.Close()
	for _, name := range []string{"first", "second"} {
		_, err := h.Redis(t.Context(), name, localserver.RedisConfig{})
		require.NoError(t, err)
	}
	require.NoError(t, h.Close())
	asked := logTime(t, filepath.Join(dir, "first/log"), "User requested shutdown")
	ended := logTime(t, filepath.Join(dir, "second/log"), "Redis is now ready to exit, bye bye")
	require.False(t, ended.After(asked), "second ended at %s, first was asked at %s", ended, asked)
}

// logTime returns when Redis logged a line.
func logTime(t *testing.T, path, message string) time.Time {
	t.Helper()
	line := regexp.MustCompile(`\d+:\S+ (.{24}) . ` + message).FindStringSubmatch(readFile(t, path))
	require.NotNil(t, line, "no %q in %s", message, path)
	at, err := time.Parse("02 Jan 2006 15:04:05.000", line[1])
	require.NoError(t, err)
	return at
}

func TestNamesAreCheckedAndUnique(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	for _, name := range []string{"", "..", "a/b", "Big", "-x", ".lock", strings.Repeat("x", 41)} {
		_, err := h.Memcached(t.Context(), name, localserver.MemcachedConfig{})
		require.ErrorContains(t, err, "a name is", "name %q", name)
	}
	_, err := h.Memcached(t.Context(), "a", localserver.MemcachedConfig{})
	require.NoError(t, err)
	_, err = h.Memcached(t.Context(), "a", localserver.MemcachedConfig{})
	require.ErrorContains(t, err, "localserver: start memcached a: the name is taken")
}

func TestBadConfigIsAnError(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	_, err := h.Memcached(t.Context(), "m", localserver.MemcachedConfig{Memory: -1})
	require.ErrorContains(t, err, "Memory")
	_, err = h.Sentinel(t.Context(), "s", localserver.SentinelConfig{})
	require.ErrorContains(t, err, "Primary")
	_, err = h.Sentinel(t.Context(), "s", localserver.SentinelConfig{Primary: &localserver.Redis{}, Quorum: -1})
	require.ErrorContains(t, err, "Quorum")
	_, err = h.Sentinel(t.Context(), "s", localserver.SentinelConfig{Primary: &localserver.Redis{}, DownAfter: 1})
	require.ErrorContains(t, err, "DownAfter")
	_, err = h.RedisCluster(t.Context(), "c", localserver.RedisClusterConfig{Replicas: -1})
	require.ErrorContains(t, err, "Replicas")
	for want, cfg := range map[string]localserver.PgBouncerConfig{
		"Of":       {},
		"PoolMode": {Of: &localserver.Postgres{}, PoolMode: "sometimes"},
		"PoolSize": {Of: &localserver.Postgres{}, PoolSize: -1},
	} {
		_, err = h.PgBouncer(t.Context(), "b", cfg)
		require.ErrorContains(t, err, want)
	}
	require.Empty(t, h.Servers())
}

func TestServerThatEndsEarlyFailsAtOnceWithItsLog(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	bad := map[string]string{"no_such_setting": "1"}
	begin := time.Now()
	_, err := h.Redis(t.Context(), "r", localserver.RedisConfig{Settings: bad})
	require.ErrorContains(t, err, "localserver: start redis r: ended before it was ready: exit status 1")
	require.ErrorContains(t, err, "Bad directive or wrong number of arguments")
	_, err = h.Memcached(t.Context(), "m", localserver.MemcachedConfig{Args: []string{"--no-such-argument"}})
	require.ErrorContains(t, err, "unrecognized option")
	_, err = h.Postgres(t.Context(), "p", localserver.PostgresConfig{Settings: bad})
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)
	_, err = h.PgBouncer(t.Context(), "b", localserver.PgBouncerConfig{Of: &localserver.Postgres{}, Settings: bad})
	require.ErrorContains(t, err, "unknown parameter: pgbouncer/no_such_setting")
	require.Less(t, time.Since(begin), 20*time.Second, "not after the minute that a start may take")
	require.Empty(t, h.Servers())

	// The name is free again.
	_, err = h.Redis(t.Context(), "r", localserver.RedisConfig{})
	require.NoError(t, err)
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := testserver.Host(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.Postgres(ctx, "p", localserver.PostgresConfig{})
	require.ErrorIs(t, err, context.Canceled)
	_, err = h.Redis(ctx, "r", localserver.RedisConfig{})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, h.Servers())
	require.Empty(t, processesIn(t, h.Dir()))
}

// processesIn lists the processes that work in a host's folder, the guard
// aside, which works in the root folder.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	var found []string
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			found = append(found, link)
		}
	}
	return found
}

func TestPortInUseIsTriedElsewhere(t *testing.T) {
	t.Parallel()
	taken := testserver.Host(t)
	p, err := taken.Postgres(t.Context(), "p", localserver.PostgresConfig{})
	require.NoError(t, err)
	r, err := taken.Redis(t.Context(), "r", localserver.RedisConfig{})
	require.NoError(t, err)
	m, err := taken.Memcached(t.Context(), "m", localserver.MemcachedConfig{})
	require.NoError(t, err)
	b, err := taken.PgBouncer(t.Context(), "b", localserver.PgBouncerConfig{Of: p})
	require.NoError(t, err)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()

	h := testserver.Host(t)
	var offer []int
	localserver.SetFreePort(h, func() (int, error) {
		if len(offer) == 0 {
			return localserver.FreePort()
		}
		port := offer[0]
		offer = offer[1:]
		return port, nil
	})
	// First a port where another server of the kind answers, which must not be
	// taken for ours, then one where nobody does.
	other := silent.Addr().(*net.TCPAddr).Port

	offer = []int{p.Port(), other}
	p2, err := h.Postgres(t.Context(), "p", localserver.PostgresConfig{})
	require.NoError(t, err)
	require.Empty(t, offer)
	require.Equal(t, filepath.Join(h.Dir(), "p/data"), queryText(t, connect(t, p2), "show data_directory"))

	offer = []int{r.Port(), other}
	r2, err := h.Redis(t.Context(), "r", localserver.RedisConfig{})
	require.NoError(t, err)
	require.Empty(t, offer)
	require.NotEqual(t, infoPID(t, r), infoPID(t, r2))

	offer = []int{m.Port(), other}
	m2, err := h.Memcached(t.Context(), "m", localserver.MemcachedConfig{})
	require.NoError(t, err)
	require.Empty(t, offer)
	require.NotContains(t, []int{m.Port(), other}, m2.Port())

	offer = []int{b.Port(), other}
	b2, err := h.PgBouncer(t.Context(), "b", localserver.PgBouncerConfig{Of: p2})
	require.NoError(t, err)
	require.Empty(t, offer)
	require.NotContains(t, []int{b.Port(), other}, b2.Port())

	// A restart keeps the port, so there the same is an error.
	require.NoError(t, m2.Stop(t.Context()))
	squatter, err := net.Listen("tcp", m2.Addr())
	require.NoError(t, err)
	require.ErrorContains(t, m2.Restart(t.Context()), "port is in use: "+m2.Addr())
	require.NoError(t, squatter.Close())
	require.NoError(t, m2.Restart(t.Context()))
}

func TestCloseWaitsForStarts(t *testing.T) {
	t.Parallel()
	h, err := localserver.Open(localserver.Config{Fast: true})
	require.NoError(t, err)
	started := make(chan error)
	go func() {
		_, err := h.Postgres(context.Background(), "p", localserver.PostgresConfig{})
		started <- err
	}()
	eventually(t, func() bool { return len(h.Servers()) == 1 }, "the start begins")
	closed := make(chan error)
	go func() { closed <- h.Close() }()
	require.NoError(t, <-started)
	require.NoError(t, <-closed)
	require.Empty(t, processesIn(t, h.Dir()))
	require.NoDirExists(t, h.Dir())
}
