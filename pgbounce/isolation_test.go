package pgbounce_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	gosync "sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

var (
	isolationTime    = flag.Duration("isolation", 5*time.Second, "how long each of the isolation tests runs")
	isolationClients = flag.Int("isolation.clients", 1000, "how many clients it has")
)

// Many clients share few servers. All that a client asks for carries a nonce of
// its own, and all that it is told is checked for it, while clients vanish,
// queries are cancelled and servers killed.
func TestIsolation(t *testing.T) {
	descriptors := openDescriptors(t)
	tests := []struct {
		name  string
		cfg   pgbounce.Config
		loops int
		users int
	}{
		{name: "TwoLoops", loops: 2, users: 1, cfg: pgbounce.Config{MaxPreparedStatements: 5}},
		{name: "FourLoopsTwoUsers", loops: 4, users: 2, cfg: pgbounce.Config{MaxDatabaseServers: 12}},
		{name: "Session", loops: 2, users: 1, cfg: pgbounce.Config{Mode: pgbounce.Session, PoolSize: 100}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dsn := testserver.Postgres(t)
			cfg := tt.cfg
			cfg.Databases = only(t, dsn).Databases
			cfg.QuietConnections = true
			cfg.Loops = tt.loops
			cfg.MaxClients = 20_000
			f := newFront(t, cfg)
			require.NoError(t, f.StartLoops(tt.loops))
			n := *isolationClients
			if tt.cfg.Mode == pgbounce.Session {
				n = cfg.PoolSize * 9 / 10 // each has a server to itself
			}
			c := newCrowd(t, f, dsn, tt.users)
			c.run(t, n, *isolationTime)
			c.check(t)
		})
	}
	eventually(t, "all descriptors are closed", func() bool { return openDescriptors(t) <= descriptors+8 })
}

// What the checks are for, they see.
func TestIsolationWouldBeSeen(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	f := newFront(t, only(t, dsn))
	c := newCrowd(t, f, dsn, 1)
	talkOf := func(number int) *member {
		m := &member{crowd: c, number: number, random: rand.New(rand.NewPCG(1, 1))}
		require.True(t, m.connected())
		t.Cleanup(m.leave)
		return m
	}
	one, two := talkOf(1), talkOf(2)
	// One hears what the other has asked for.
	one.ask(one.select1())
	two.ask(two.select1())
	one.talk, two.talk = two.talk, one.talk
	one.hear()
	require.Len(t, c.faults, 2)
	require.Contains(t, c.faults[0], "a row of somebody else")
	require.NotEqual(t, pgbounce.Census{}, f.Census())
	o := &op{}
	o.add("CZ", query("begin"))
	for _, a := range []answer{{kinds: "CZCZ"}, {kinds: "Z"}, {kinds: "EZ", codes: []string{"57014"}}} {
		require.NotEmpty(t, o.judge(a, false))
	}
	require.NotEmpty(t, o.judge(answer{kinds: "EZ", codes: []string{"42601"}}, true))
	require.Empty(t, o.judge(answer{kinds: "EZ", codes: []string{"57014"}}, true))
}

// openDescriptors counts this process's. The shared PostgreSQL may cost a few.
func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(list)
}

// A crowd is clients, driven by few goroutines: each has some of them ask, then
// reads what they are told.
type crowd struct {
	front *front
	dsn   string
	admin *pgx.Conn
	users []string

	over, failed                                      atomic.Bool
	asked, rows, canceled, vanished, kills, disturbed atomic.Int64
	progress                                          []atomic.Int64 // by user

	mu     gosync.Mutex
	faults []string
}

func newCrowd(t *testing.T, f *front, dsn string, users int) *crowd {
	t.Helper()
	c := &crowd{front: f, dsn: dsn, admin: adminOf(t, dsn), users: []string{"postgres"}, progress: make([]atomic.Int64, users)}
	_, err := c.admin.Exec(t.Context(), "create table sink (nonce text, size int); grant all on sink to public")
	require.NoError(t, err)
	for n := 1; n < users; n++ {
		role := fmt.Sprintf("%s_user%d", c.admin.Config().Database, n)
		_, err := c.admin.Exec(t.Context(), "create role "+role+" login")
		require.NoError(t, err)
		t.Cleanup(func() {
			f.Close()
			c.admin.Exec(context.Background(), "drop role "+role)
		})
		c.users = append(c.users, role)
	}
	return c
}

// wrong notes a fault, and ends the run.
func (c *crowd) wrong(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.faults) < 20 {
		c.faults = append(c.faults, fmt.Sprintf(format, args...))
	}
	c.over.Store(true)
	c.failed.Store(true)
}

const perGoroutine = 20

func (c *crowd) run(t *testing.T, clients int, d time.Duration) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var group gosync.WaitGroup
	end := time.AfterFunc(d, func() { c.over.Store(true) })
	defer end.Stop()
	for first := 0; first < clients; first += perGoroutine {
		random := rand.New(rand.NewPCG(seed, uint64(first)))
		var members []*member
		for i := first; i < min(first+perGoroutine, clients); i++ {
			members = append(members, &member{crowd: c, number: i, random: random})
		}
		group.Go(func() { c.drive(members, random) })
	}
	group.Go(func() { c.kill(rand.New(rand.NewPCG(seed, 1<<40))) })
	group.Wait()
	t.Logf("%d batches, %d rows, %d cancels, %d vanished, %d kills, %d clients disturbed by them",
		c.asked.Load(), c.rows.Load(), c.canceled.Load(), c.vanished.Load(), c.kills.Load(), c.disturbed.Load())
}

// kill terminates a server now and then.
func (c *crowd) kill(random *rand.Rand) {
	conn, err := pgx.Connect(context.Background(), c.dsn)
	if err != nil {
		c.wrong("connect: %v", err)
		return
	}
	defer conn.Close(context.Background())
	for !c.over.Load() {
		time.Sleep(time.Duration(50+random.IntN(300)) * time.Millisecond)
		const sql = `select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity
			where datname = current_database() and application_name not like 'admin%' and pid <> all($1) order by random() limit 1) s`
		var n int64
		ours := []int32{int32(conn.PgConn().PID()), int32(c.admin.PgConn().PID())}
		if err := conn.QueryRow(context.Background(), sql, ours).Scan(&n); err != nil {
			c.wrong("terminate: %v", err)
			return
		}
		c.kills.Add(n)
	}
}

// drive has members ask until the run is over.
func (c *crowd) drive(members []*member, random *rand.Rand) {
	defer func() {
		for _, m := range members {
			m.leave()
		}
	}()
	for !c.over.Load() {
		random.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		asking := members[:1+random.IntN(len(members))]
		for _, m := range asking {
			m.ask(m.compose())
		}
		for _, m := range asking {
			switch random.IntN(40) {
			case 0, 1:
				m.cancelNow()
			case 2:
				m.vanish(m.random.IntN(2) == 0)
			}
		}
		for _, m := range asking {
			m.hear()
		}
		// Nobody else of this goroutine's waits now, so one may take its time.
		members[0].slowly()
	}
	for _, m := range members {
		m.ask(m.select1())
		m.hear()
	}
}

// check sees that all is as it was.
func (c *crowd) check(t *testing.T) {
	t.Helper()
	require.Empty(t, c.faults, "%s", strings.Join(c.faults, "\n"))
	require.NotZero(t, c.rows.Load())
	require.LessOrEqual(t, c.disturbed.Load(), c.kills.Load(), "clients disturbed without a killed server")
	for i := range c.progress {
		require.NotZero(t, c.progress[i].Load(), "user %d got nothing", i)
	}
	eventually(t, "clients are gone", func() bool {
		n := c.front.Census()
		return n.Clients+n.Counted+n.Logins+n.Waiters+n.Keys == 0
	})
	eventually(t, "servers are idle", func() bool {
		return one[int](t, c.admin, `select count(*) from pg_stat_activity where datname = current_database()
			and pid <> pg_backend_pid() and state <> 'idle'`) == 0
	})
	eventually(t, "all servers are known", func() bool {
		return one[int](t, c.admin, `select count(*) from pg_stat_activity where datname = current_database()
			and pid <> pg_backend_pid() and backend_type = 'client backend'`) == c.front.Census().Servers
	})
	mixed := one[int](t, c.admin, `select count(*) from (select from sink group by nonce, size having count(*) <> size) s`)
	require.Zero(t, mixed, "copies that are not whole, or transactions that nobody has committed")
}

// A member is a client of a crowd.
type member struct {
	crowd  *crowd
	number int
	random *rand.Rand
	serial int

	talk    *talk
	named   map[string]bool
	unnamed bool
	app     string // its application_name, if that is known
	op      *op    // what it waits for the answer of
	cancel  net.Conn
	touched bool // a cancel may hit what it asks
}

// An op is a batch that is sent at once, and what its answer must be.
type op struct {
	out     []byte
	want    string
	rows    []string
	codes   []string
	readies int
}

func (o *op) add(want string, messages ...pgproto3.FrontendMessage) {
	o.out = append(o.out, encode(messages...)...)
	o.want += want
	o.readies += strings.Count(want, "Z")
}

// rowsOf adds n rows of a nonce to what is expected.
func (o *op) rowsOf(nonce string, n int) string {
	for range n {
		o.rows = append(o.rows, nonce)
	}
	return strings.Repeat("D", n)
}

func (o *op) fails(code string) string {
	o.codes = append(o.codes, code)
	return "E"
}

func (m *member) nonce() string {
	m.serial++
	return fmt.Sprintf("nonce %d.%d", m.number, m.serial)
}

func (m *member) user() int { return m.number % len(m.crowd.users) }

// connected logs in if that is needed.
func (m *member) connected() bool {
	if m.talk != nil {
		return true
	}
	k, err := m.crowd.front.enter(m.number/len(m.crowd.users), m.crowd.users[m.user()], "db", "application_name", fmt.Sprintf("member %d", m.number))
	if err != nil {
		m.crowd.wrong("member %d: %v", m.number, err)
		return false
	}
	k.wait = 30 * time.Second
	m.talk, m.named, m.unnamed = k, map[string]bool{}, false
	m.app = fmt.Sprintf("member %d", m.number)
	return true
}

func (m *member) leave() {
	if m.talk != nil {
		m.talk.conn.Close()
	}
	m.talk, m.op, m.touched = nil, nil, false
	if m.cancel != nil {
		m.cancel.Close()
		m.cancel = nil
	}
}

func (m *member) select1() *op {
	o, n := &op{}, m.nonce()
	o.add("T"+o.rowsOf(n, 1)+"CZ", query("select '"+n+"'"))
	return o
}

// compose makes a batch of some parts.
func (m *member) compose() *op {
	if !m.connected() {
		return nil
	}
	o := &op{}
	for range 1 + m.random.IntN(4) {
		m.part(o)
	}
	return o
}

const seriesSQL = "select $1::text, n from generate_series(1, $2::int) n -- "

// part adds a transaction of some kind.
func (m *member) part(o *op) {
	n := m.nonce()
	k := m.random.IntN(5)
	count := fmt.Sprint(k)
	rows := func() string { return o.rowsOf(n, k) }
	name := fmt.Sprintf("s%d", m.random.IntN(4))
	sql := seriesSQL + fmt.Sprint(m.random.IntN(9))
	simple := fmt.Sprintf("select '%s', n from generate_series(1, %d) n", n, k)
	switch m.random.IntN(22) {
	case 0, 1:
		o.add("T"+rows()+"CZ", query(simple))
	case 2:
		o.add("T"+rows()+"CT"+rows()+"CZ", query(simple+";"+simple))
	case 3:
		o.add("T"+o.rowsOf(n, 1)+o.fails("22012")+"Z", query("select '"+n+"', 1/(n-2) from generate_series(1, 3) n"))
	case 4:
		o.add("IZ", query(""))
	case 5: // a transaction
		o.add("CZT"+rows()+"CZT"+rows()+"CZCZ", query("begin"), query(simple), query(simple), query("commit"))
	case 6:
		o.add("CZ"+o.fails("22012")+"Z"+o.fails("25P02")+"ZCZ", query("begin"), query("select 1/0"), query(simple), query("rollback"))
	case 7:
		o.add("12T"+rows()+"CZ", parse("", sql), bind("", "", n, count), describePortal(""), execute(""), sync)
		m.unnamed = true
	case 8: // the unnamed statement of a batch before
		if m.unnamed {
			o.add("2T"+rows()+"CZ", bind("", "", n, count), describePortal(""), execute(""), sync)
		} else {
			o.add("1tTZ", parse("", sql), describeStatement(""), sync)
			m.unnamed = true
		}
		return
	case 9, 10, 11: // a named one
		if m.named[name] {
			o.add("2"+rows()+"CZ", bind("", name, n, count), execute(""), sync)
		} else {
			o.add("12T"+rows()+"CZ", parse(name, sql), flush, bind("", name, n, count), describePortal(""), flush, execute(""), sync)
			m.named[name] = true
		}
		return
	case 12: // several in one implicit transaction
		o.add("12"+rows()+"C12"+rows()+"CZ", parse("", sql), bind("", "", n, count), execute(""),
			parse("", sql+"b"), bind("p", "", n, count), execute("p"), sync)
		m.unnamed = true
	case 13: // the rest is skipped after an error
		o.add("1"+o.fails("22P02")+"Z", parse("", sql), bind("", "", n, "many"), execute(""),
			parse("never", sql), bind("", "never", n, count), execute(""), sync)
		m.unnamed = true
	case 14:
		if m.named[name] {
			o.add(o.fails("42P05")+"Z", parse(name, sql), sync)
		} else {
			o.add(o.fails("26000")+"Z", bind("", name, n, count), execute(""), sync)
		}
		return
	case 15:
		o.add("3Z", closeStatement(name), sync)
		delete(m.named, name)
	case 16: // copies
		o.add("H"+strings.Repeat("d", len(rows()))+"cCZ", query("copy ("+simple+") to stdout"))
	case 17:
		line := data(fmt.Sprintf("%s\t%d\n", n, k))
		var copied []pgproto3.FrontendMessage
		for range k {
			copied = append(copied, line)
		}
		o.add("GCZ", append(append([]pgproto3.FrontendMessage{query("copy sink from stdin")}, copied...), copyDone)...)
	case 18:
		o.add("G"+o.fails("22P02")+"Z", query("copy sink from stdin"), data("x\tnot a number\n"), data(n+"\t1\n"), copyDone)
	case 19: // a parameter of the session
		if m.app != "" && m.random.IntN(2) == 0 {
			o.add("T"+o.rowsOf(m.app, 1)+"CZ", query("show application_name"))
		} else {
			o.add("CZ", query("set application_name = '"+n+"'"))
			m.app = n
		}
	case 20:
		o.add("T"+o.rowsOf(n, 1)+"CZ", query("select '"+n+"' from pg_sleep(0.03)"))
	case 21:
		o.add("T"+o.rowsOf(n, 10)+"CZ", query("select '"+n+"', repeat('x', 1000) from generate_series(1, 10)"))
	}
	// A simple query drops it.
	m.unnamed = m.unnamed && bytes.HasSuffix(o.out, encode(sync))
}

// ask sends a batch.
func (m *member) ask(o *op) {
	if o == nil || !m.connected() {
		return
	}
	m.op = o
	m.crowd.asked.Add(1)
	if err := m.talk.write(o.out); err != nil {
		m.crowd.front.log.Write([]byte("write: " + err.Error() + "\n")) // the answer tells why
	}
}

// cancelNow asks for a cancel of whatever the member does by then.
func (m *member) cancelNow() {
	if m.op == nil || m.cancel != nil {
		return
	}
	key := m.talk.key
	if m.random.IntN(4) == 0 {
		key = append(slices.Clone(key[:len(key)-1]), key[len(key)-1]^1) // of nobody
	} else {
		m.touched = true
	}
	conn, err := m.crowd.front.cancel(m.random.IntN(2), key)
	if err != nil {
		m.crowd.wrong("cancel: %v", err)
		return
	}
	m.cancel = conn
	m.crowd.canceled.Add(1)
}

// vanish ends the connection in the middle of things, perhaps after a part of
// one batch more.
func (m *member) vanish(half bool) {
	if m.talk == nil {
		return
	}
	m.crowd.vanished.Add(1)
	if tcp, ok := m.talk.conn.(*net.TCPConn); ok && m.random.IntN(2) == 0 {
		tcp.SetLinger(0)
	}
	if half {
		out := m.compose().out
		_ = m.talk.write(out[:m.random.IntN(len(out))])
	}
	m.leave()
}

// hear reads the answer to what was asked, and checks it.
func (m *member) hear() {
	o := m.op
	if o == nil || m.talk == nil {
		return
	}
	m.op = nil
	if m.crowd.failed.Load() {
		m.leave() // more answers would tell nothing new
		return
	}
	a, err := m.talk.answer(o.readies)
	m.crowd.rows.Add(int64(len(a.rows)))
	m.own(a)
	if err != nil || slices.Contains(a.codes, "57P01") {
		m.ended(o, a, err)
		return
	}
	m.crowd.progress[m.user()].Add(1)
	if complaint := o.judge(a, m.touched); complaint != "" {
		m.crowd.wrong("member %d: %s", m.number, complaint)
	}
	if m.cancel != nil && (m.random.IntN(2) == 0 || !m.touched) {
		if err := m.crowd.front.canceled(m.cancel); err != nil {
			m.crowd.wrong("member %d: %v", m.number, err)
		}
		m.cancel = nil
		if !m.touched {
			return
		}
		// From here on no cancel may hit. What became of its names is not known.
		m.touched = false
		m.named, m.unnamed, m.app = map[string]bool{}, false, ""
		clean := &op{}
		clean.add("CZ", query("deallocate all"))
		m.ask(clean)
		m.hear()
	}
}

// own sees that all rows are the member's, whatever else was wrong.
func (m *member) own(a answer) {
	for _, row := range a.rows {
		if !strings.HasPrefix(row, fmt.Sprintf("nonce %d.", m.number)) && row != fmt.Sprintf("member %d", m.number) {
			m.crowd.wrong("member %d: a row of somebody else: %q", m.number, row)
		}
	}
}

// ended is called when the connection is at its end, which only a killed server
// may be the cause of.
func (m *member) ended(o *op, a answer, err error) {
	told := len(a.codes) > 0 && slices.Contains([]string{"57P01", "08P01"}, a.codes[len(a.codes)-1])
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "reset"):
		m.crowd.wrong("member %d: %v after %s of %s", m.number, err, a, o.want)
	case !told && (err == nil || !strings.Contains(err.Error(), "inside a message")):
		m.crowd.wrong("member %d: ended without a word: %v after %s of %s", m.number, err, a, o.want)
	}
	m.crowd.disturbed.Add(1)
	m.leave()
}

// judge says what is wrong with an answer. A batch that was touched by a cancel
// may fail anywhere.
func (o *op) judge(a answer, touched bool) string {
	if touched {
		for _, code := range a.codes {
			if !slices.Contains([]string{"57014", "25P02", "26000", "42P05"}, code) && !slices.Contains(o.codes, code) {
				return fmt.Sprintf("an error after a cancel: %s", a)
			}
		}
		return "" // what it does depends on what has failed
	}
	want := strings.ReplaceAll(o.want, "d", "D")
	if strings.ReplaceAll(a.kinds, "d", "D") != want || !slices.Equal(a.rows, o.rows) || !slices.Equal(a.codes, o.codes) {
		return fmt.Sprintf("got %s, want %s %q, errors %q", a, o.want, o.rows, o.codes)
	}
	return ""
}

// slowly is a transaction that waits for each answer, or a large result, and
// sometimes does not end.
func (m *member) slowly() {
	if m.touched || m.cancel != nil || !m.connected() || m.crowd.over.Load() {
		return
	}
	n := m.nonce()
	sql := "select '" + n + "', repeat('x', 2000) from generate_series(1, 300)"
	m.unnamed = false
	step := func(want string, rows int, messages ...pgproto3.FrontendMessage) bool {
		o := &op{}
		o.rowsOf(n, rows)
		o.add(want, messages...)
		m.ask(o)
		m.hear()
		return m.talk != nil && m.random.IntN(12) > 0
	}
	large := "T" + strings.Repeat("D", 300) + "CZ"
	switch m.random.IntN(4) {
	case 0, 1:
		if step("CZ", 0, query("begin")) && step("TDCZ", 1, query("select '"+n+"'")) &&
			step("12DCZ", 1, parse("", "select '"+n+"'"), bind("", ""), execute(""), sync) &&
			step("CZ", 0, query("insert into sink select '"+n+"', 3")) && step(large, 300, query(sql)) {
			step("CZ", 0, query("rollback"))
			return
		}
		m.vanish(false) // nobody has sent a commit
	case 2:
		step(large, 300, query(sql))
	}
}
