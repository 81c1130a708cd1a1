package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedPostgres) }

// secret is the password in every DSN of these tests. The servers do not ask for
// one, and no command may show it.
const secret = "geheim7"

func withSecret(dsn string) string {
	return strings.Replace(dsn, "postgres@", "postgres:"+secret+"@", 1)
}

type result struct {
	code     int
	out, err string
}

// shardctl runs a command, and looks for the secret in what it says.
func shardctl(t *testing.T, args ...string) result {
	t.Helper()
	return shardctlCtx(t.Context(), t, args...)
}

func shardctlCtx(ctx context.Context, t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(ctx, args, &out, &errs)
	require.NotContains(t, out.String()+errs.String(), secret)
	return result{code, out.String(), errs.String()}
}

// printed decodes what a command printed with --json.
func printed[T any](t *testing.T, r result) (v T) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(r.out))
	require.NoError(t, d.Decode(&v), r.out)
	require.False(t, d.More(), "one object")
	return v
}

// narrow checks that a table fits an ordinary terminal.
func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		require.LessOrEqual(t, utf8.RuneCountInString(strings.TrimRight(line, "\n")), 80, line)
	}
}

// folder writes migrations.
func folder(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

func notes(t *testing.T) string {
	return folder(t, map[string]string{"0001_note.sql": `
		create table note (id bigint primary key default next_id(), body text);
		create index note_body on note (body)`})
}

// exec runs SQL on a database.
func exec(t *testing.T, dsn, sql string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	_, err = c.Exec(t.Context(), sql)
	require.NoError(t, err)
	require.NoError(t, c.Close(t.Context()))
}

func TestFromInitToDrift(t *testing.T) {
	t.Parallel()
	catalog := "--catalog=" + withSecret(testserver.Postgres(t))
	one, two := withSecret(testserver.Postgres(t)), withSecret(testserver.Postgres(t))
	initArgs := []string{"init", catalog, "--shards", "16", "--node", "pg_1=" + one, "--node", "pg_2=" + two}

	r := shardctl(t, initArgs...)
	require.Equal(t, result{0, "16 shards on 2 nodes. Next: shardctl migrate DIR\n", r.err}, r)
	require.Contains(t, r.err, "pg_1: 8 of 8 shards\n")
	require.Contains(t, r.err, "pg_2: 8 of 8 shards\n")
	require.NotContains(t, r.err, "\x1b", "it is no terminal")
	again := printed[struct {
		Shards int
		Schema string
		Nodes  []shard.Node
		Failed []failure
	}](t, shardctl(t, append(initArgs, "--json")...))
	require.Equal(t, 16, again.Shards)
	require.Equal(t, "shard", again.Schema)
	require.Equal(t, []shard.Node{{Name: "pg_1"}, {Name: "pg_2"}}, again.Nodes)
	require.Empty(t, again.Failed)

	other := append(initArgs[:3:3], append([]string{"32"}, initArgs[4:]...)...)
	r = shardctl(t, other...)
	require.Equal(t, failed, r.code)
	require.Contains(t, r.err, "16")

	dir := notes(t)
	r = shardctl(t, "migrate", dir, "--dry-run", catalog)
	require.Equal(t, ok, r.code)
	require.Contains(t, r.out, "dry run")
	r = shardctl(t, "migrate", dir, catalog)
	require.Equal(t, ok, r.code, r.err)
	require.Contains(t, r.out, "16 of 16")
	require.Contains(t, r.err, "pg_2: 8 of 8 shards\n")
	done := printed[struct {
		Version, Shards int
		Changed         []migrated
	}](t, shardctl(t, "migrate", dir, catalog, "--json"))
	require.Equal(t, []int{1, 16}, []int{done.Version, done.Shards})
	require.Empty(t, done.Changed)

	r = shardctl(t, "status", catalog, "--shards")
	require.Equal(t, ok, r.code, r.err)
	narrow(t, r.out)
	require.Regexp(t, `(?m)^NODE  SHARDS  HOST +ROLE +CONNS  SIZE +LAG$`, r.out)
	require.Regexp(t, `(?m)^pg_2  8       127\.0\.0\.1:\d+  primary  \d+ +[\d.]+ MB$`, r.out)
	require.Contains(t, r.out, "16 serving")
	require.Contains(t, r.out, "16 at version 1")
	require.Regexp(t, `(?m)^15     shard_0015  pg_2  serving  1      1$`, r.out)
	st := printed[status](t, shardctl(t, "status", catalog, "--json"))
	require.Equal(t, map[shard.State]int{shard.Serving: 16}, st.States)
	require.Equal(t, map[int]int{1: 16}, st.Schemas)
	require.Equal(t, "shard", st.Schema)
	require.Empty(t, st.Shards)
	require.Equal(t, "pg_1", st.Nodes[0].Node)
	require.Equal(t, "primary", st.Nodes[0].Hosts[0].Role)
	require.Positive(t, st.Nodes[0].Bytes)
	require.Positive(t, st.Nodes[0].Conns)

	r = shardctl(t, "drift", catalog)
	require.Equal(t, result{0, "no difference in 16 shards\n", ""}, r)
	exec(t, two, "drop index shard_0005.note_body")
	r = shardctl(t, "drift", catalog)
	require.Equal(t, failed, r.code)
	require.Contains(t, r.out, "note_body")
	require.Contains(t, r.out, "in 1 of 16 shards\n")
	require.Empty(t, r.err)
	drift := printed[struct {
		Shards      int
		Differences []difference
	}](t, shardctl(t, "drift", catalog, "--json"))
	require.Equal(t, 16, drift.Shards)
	require.NotEmpty(t, drift.Differences)
	for _, d := range drift.Differences {
		require.Equal(t, 5, d.Shard)
		require.Equal(t, "pg_2", d.Node)
	}
}

func TestRouteTellsWhereThingsAre(t *testing.T) {
	t.Parallel()
	catalog := "--catalog=" + withSecret(testserver.Postgres(t))
	nodes := []string{"--node", "pg_1=" + withSecret(testserver.Postgres(t)), "--node", "pg_2=" + withSecret(testserver.Postgres(t))}
	require.Equal(t, ok, shardctl(t, append([]string{"init", catalog, "--shards", "64", "--schema", "photo"}, nodes...)...).code)
	at := time.Date(2027, 3, 4, 5, 6, 7, 89e6, time.UTC)
	id, err := idgen.Default.Compose(at, 61, 42)
	require.NoError(t, err)
	far, err := idgen.Default.Compose(at, 64, 0)
	require.NoError(t, err)

	r := shardctl(t, "route", "--id", id.String(), catalog)
	require.Equal(t, result{0, `shard     61
schema    photo_0061
node      pg_2
epoch     1
state     serving
time      2027-03-04T05:06:07.089Z
sequence  42
`, ""}, r)
	for _, test := range []struct {
		name string
		args []string
		want int
	}{
		{"Key", []string{"alice"}, int(shard.HashText("alice") & 63)},
		{"KeyLikeAFlag", []string{"--", "--catalog"}, int(shard.HashText("--catalog") & 63)},
		{"Int", []string{"--int", "-5"}, int(shard.HashInt(-5) & 63)},
		{"ID", []string{"--id=" + id.String()}, 61},
		{"Shard", []string{"--shard", "7"}, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := printed[route](t, shardctl(t, append([]string{"route", catalog, "--json"}, test.args...)...))
			require.Equal(t, test.want, got.Shard)
			require.Equal(t, []string{"pg_1", "pg_2"}[test.want%2], got.Node)
			require.Equal(t, shard.Serving, got.State)
		})
	}
	for _, args := range [][]string{{"--shard", "64"}, {"--shard", "-1"}, {"--id", far.String()}} {
		r := shardctl(t, append([]string{"route", catalog}, args...)...)
		require.Equal(t, failed, r.code)
		require.Contains(t, r.err, "there is no such shard: the catalog has 64")
	}
}

func TestHotRanksByWork(t *testing.T) {
	t.Parallel()
	catalog := "--catalog=" + withSecret(testserver.Postgres(t))
	node := withSecret(testserver.Postgres(t))
	require.Equal(t, ok, shardctl(t, "init", catalog, "--shards", "4", "--node", "pg_1="+node).code)
	require.Equal(t, ok, shardctl(t, "migrate", notes(t), catalog).code)
	r := shardctl(t, "hot", "--for", "10ms", catalog)
	require.Equal(t, ok, r.code, r.err)

	work, stop := context.WithCancel(t.Context())
	worked := make(chan error, 1)
	go func() {
		c, err := pgx.Connect(work, node)
		for err == nil {
			_, err = c.Exec(work, "insert into shard_0002.note (body) select 'x' from generate_series(1, 100); insert into shard_0001.note (body) values ('x'); select pg_stat_force_next_flush()")
		}
		if c != nil {
			c.Close(context.Background())
		}
		worked <- err
	}()
	first := regexp.MustCompile(`(?m)^2      pg_1  9\d\.\d%  ██████████ .*\n1      pg_1 `)
	require.Eventually(t, func() bool {
		r = shardctl(t, "hot", "--for", "300ms", "--top", "2", catalog)
		return first.MatchString(r.out)
	}, 20*time.Second, time.Millisecond)
	require.Equal(t, ok, r.code)
	narrow(t, r.out)
	require.Len(t, strings.Split(strings.TrimSpace(r.out), "\n"), 3)
	hot := printed[struct {
		Took   time.Duration
		Shards []heat
	}](t, shardctl(t, "hot", "--for", "300ms", catalog, "--json"))
	require.GreaterOrEqual(t, hot.Took, 300*time.Millisecond)
	require.Len(t, hot.Shards, 4)
	require.Equal(t, 2, hot.Shards[0].Shard)
	require.Greater(t, hot.Shards[0].Share, 0.9)
	require.Positive(t, hot.Shards[0].RowsWritten)
	stop()
	require.ErrorIs(t, <-worked, context.Canceled)
}

func TestWrongUseIsTold(t *testing.T) {
	t.Parallel()
	const dsn = "postgres://u:" + secret + "@127.0.0.1:1/db"
	const catalog = "--catalog=" + dsn
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"NoCommand", nil, "COMMAND"},
		{"NoSuchCommand", []string{dsn}, "no such command"},
		{"NoSuchHelp", []string{"help", dsn}, "no such command"},
		{"NoCatalog", []string{"status"}, "SHARDGRAM_CATALOG"},
		{"BadCatalog", []string{"status", "--catalog=postgres://u:" + secret + "@:bad:/"}, "the DSN of the catalog is not valid"},
		{"NoSuchFlag", []string{"status", "--nodes=" + dsn, catalog}, "no flag --nodes"},
		{"FlagLikeADSN", []string{"status", "-" + dsn, catalog}, "a flag is not valid"},
		{"FlagOfSigns", []string{"status", "---" + dsn}, "a flag is not valid"},
		{"FlagWithoutValue", []string{"status", "--catalog"}, "--catalog needs a value"},
		{"BadShards", []string{"init", catalog, "--shards", dsn}, "--shards is not valid"},
		{"BadBool", []string{"status", "--json=" + dsn}, "a flag is not valid"},
		{"BadDuration", []string{"hot", "--for", dsn}, "--for is not valid"},
		{"NegativeDuration", []string{"hot", "--for=-1s", catalog}, "more than 0"},
		{"TooManyArguments", []string{"status", dsn, catalog}, "more arguments than it takes"},
		{"NoShards", []string{"init", catalog, "--node", "a=" + dsn}, "how many shards"},
		{"OddShards", []string{"init", catalog, "--shards=12", "--node", "a=" + dsn}, "power of two"},
		{"TooManyShards", []string{"init", catalog, "--shards=16384", "--node", "a=" + dsn}, "8192"},
		{"NoNode", []string{"init", catalog, "--shards=4"}, "--node"},
		{"NodeWithoutName", []string{"init", catalog, "--shards=4", "--node", dsn}, "node 1: write NAME=DSN"},
		{"NodeWithEmptyName", []string{"init", catalog, "--shards=4", "--node", "=" + dsn}, "node 1: write NAME=DSN"},
		{"NodeWithoutDSN", []string{"init", catalog, "--shards=4", "--node", "nowhere"}, "SHARDGRAM_NODE_NOWHERE"},
		{"NoFolder", []string{"migrate", catalog}, "the folder of the SQL files is missing"},
		{"ShortLockTimeout", []string{"migrate", "x", "--lock-timeout=0", catalog}, "1ms"},
		{"NothingToRoute", []string{"route", catalog}, "one of"},
		{"TwoToRoute", []string{"route", "alice", "--shard", "1", catalog}, "one of"},
		{"IntToRoute", []string{"route", "--int", dsn, catalog}, "--int takes"},
		{"IDToRoute", []string{"route", "--id", dsn, catalog}, "--id takes"},
		{"ShardToRoute", []string{"route", "--shard", dsn, catalog}, "--shard takes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := shardctl(t, test.args...)
			require.Equal(t, wrongUse, r.code, r.err)
			require.Contains(t, r.err, test.want)
			require.Empty(t, r.out)
		})
	}
}

func TestHelpIsForEveryCommand(t *testing.T) {
	t.Parallel()
	r := shardctl(t, "help")
	require.Equal(t, ok, r.code)
	narrow(t, r.out)
	for _, cmd := range commands {
		require.Contains(t, r.out, "\n  "+cmd.name+" ")
		h := shardctl(t, "help", cmd.name)
		require.Equal(t, ok, h.code)
		narrow(t, h.out)
		require.True(t, strings.HasPrefix(h.out, "shardctl "+cmd.name), h.out)
		require.Equal(t, h, shardctl(t, cmd.name, "--help"))
		c := &call{progress: newBars(nil, false)}
		require.NoError(t, c.parse(cmd, []string{"--catalog=x"}))
	}
}

func TestEnvironmentHoldsDSNs(t *testing.T) {
	catalog, one, two := withSecret(testserver.Postgres(t)), withSecret(testserver.Postgres(t)), withSecret(testserver.Postgres(t))
	t.Setenv("SHARDGRAM_CATALOG", catalog)
	t.Setenv("SHARDGRAM_NODE_PG_2", two)
	t.Setenv("SHARDGRAM_NODE_PG_1", one)
	require.Equal(t, ok, shardctl(t, "init", "--shards=2", "--node=pg_2").code)
	require.Equal(t, ok, shardctl(t, "init", "--shards=2").code, "pg_1 is new")
	st := printed[status](t, shardctl(t, "status", "--json"))
	require.Equal(t, []string{"pg_2", "pg_1"}, []string{st.Nodes[0].Node, st.Nodes[1].Node})
	require.Equal(t, []int{2, 0}, []int{st.Nodes[0].Shards, st.Nodes[1].Shards})
}

func TestACatalogThatCannotBeReadIsThree(t *testing.T) {
	t.Parallel()
	empty := "--catalog=" + withSecret(testserver.Postgres(t))
	const gone = "--catalog=postgres://u:" + secret + "@127.0.0.1:1/db"
	for _, args := range [][]string{
		{"status"}, {"route", "alice"}, {"migrate", "."}, {"drift"}, {"hot"},
	} {
		r := shardctl(t, append(args, gone)...)
		require.Equal(t, noCatalog, r.code, r.err)
		require.Contains(t, r.err, "shardctl "+args[0]+": load the catalog: ")
		r = shardctl(t, append(args, empty)...)
		require.Equal(t, noCatalog, r.code, r.err)
		require.Contains(t, r.err, "there is no catalog")
	}
	require.Equal(t, noCatalog, shardctl(t, "init", gone, "--shards=2", "--node=a="+withSecret(testserver.Postgres(t))).code)
}

func TestFaultsAreToldAndInterruptsObeyed(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	start := func(name string) *localserver.Postgres {
		p, err := host.Postgres(t.Context(), name, localserver.PostgresConfig{})
		require.NoError(t, err)
		return p
	}
	sick, keeper := start("sick"), start("keeper")
	catalog := "--catalog=" + withSecret(keeper.DSN("postgres"))
	initArgs := []string{"init", catalog, "--shards=4", "--node=well=" + withSecret(testserver.Postgres(t)), "--node=sick=" + withSecret(sick.DSN("postgres"))}
	require.Equal(t, ok, shardctl(t, initArgs...).code)
	dir := notes(t)
	all := [][]string{initArgs, {"status", catalog}, {"migrate", dir, catalog}, {"drift", catalog}, {"hot", "--for=10ms", catalog}}

	require.NoError(t, sick.Kill())
	for _, args := range all {
		r := shardctl(t, args...)
		require.Equal(t, failed, r.code, args[0])
		require.Contains(t, r.err, "sick", args[0])
		require.NotContains(t, r.err, "interrupted")
	}
	r := shardctl(t, "status", catalog)
	require.Regexp(t, `(?m)^sick +2 +127\.0\.0\.1:\d+  down$`, r.out)
	require.Regexp(t, `(?m)^well +2 +127\.0\.0\.1:\d+  primary  \d`, r.out)
	m := printed[struct{ Failed []failure }](t, shardctl(t, "migrate", dir, catalog, "--json"))
	require.Len(t, m.Failed, 2)
	require.Equal(t, "sick", m.Failed[0].Node)
	require.Equal(t, ok, shardctl(t, "route", "--shard=1", catalog).code, "no node is asked")

	require.NoError(t, sick.Restart(t.Context()))
	require.Equal(t, ok, shardctl(t, "migrate", dir, catalog).code)

	// A node that hangs, and then the catalog too.
	interrupt := func(args []string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan time.Time, 1)
		timer := time.AfterFunc(300*time.Millisecond, func() { stopped <- time.Now(); cancel() })
		defer timer.Stop()
		defer cancel()
		r := shardctlCtx(ctx, t, args...)
		require.Less(t, time.Since(<-stopped), time.Second+500*time.Millisecond, args[0])
		require.Equal(t, failed, r.code, args[0])
		require.Contains(t, r.err, "interrupted", args[0])
		require.Contains(t, r.err, "run", args[0])
		require.NotContains(t, r.err, "context canceled")
	}
	require.NoError(t, sick.Pause())
	for _, args := range append(all, []string{"hot", "--for=1h", catalog}) {
		interrupt(args)
	}
	require.NoError(t, sick.Resume())
	require.NoError(t, keeper.Pause())
	for _, args := range append(all, []string{"route", "alice", catalog}) {
		interrupt(args)
	}
	require.NoError(t, keeper.Resume())

	// Both hang only when there are connections that are to be closed.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	paused := make(chan error, 1)
	stopped := make(chan time.Time, 1)
	timer := time.AfterFunc(time.Second, func() {
		paused <- errors.Join(sick.Pause(), keeper.Pause())
		stopped <- time.Now()
		cancel()
	})
	defer timer.Stop()
	r = shardctlCtx(ctx, t, "hot", "--for=1h", catalog)
	require.Less(t, time.Since(<-stopped), time.Second+500*time.Millisecond)
	require.NoError(t, <-paused)
	require.Contains(t, r.err, "interrupted")
	require.NoError(t, errors.Join(sick.Resume(), keeper.Resume()))
	require.Eventually(t, func() bool { return shardctl(t, all[1]...).code == ok }, 20*time.Second, 10*time.Millisecond)
}
