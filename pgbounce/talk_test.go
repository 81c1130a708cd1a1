package pgbounce_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// A front is a Bouncer that listens on TCP and on a Unix socket.
type front struct {
	*pgbounce.Bouncer
	tcp, unix string
	folder    string // of the Unix socket
	log       *journal
	logger    *slog.Logger // to it
}

// newFront starts a Bouncer, and sees at the end that it ended well.
func newFront(t testing.TB, cfg pgbounce.Config) *front {
	t.Helper()
	f := &front{log: &journal{}}
	f.logger = slog.New(slog.NewTextHandler(f.log, nil))
	cfg.Log = f.logger
	b, err := pgbounce.New(cfg)
	require.NoError(t, err)
	f.Bouncer = b
	f.folder, err = os.MkdirTemp("", "pgb") // t.TempDir is too long for a socket
	require.NoError(t, err)
	f.unix = filepath.Join(f.folder, ".s.PGSQL.6432")
	done := make(chan error, 2)
	serve := func(network, addr string) string {
		l, err := net.Listen(network, addr)
		require.NoError(t, err)
		go func() { done <- b.Serve(context.Background(), l) }()
		return l.Addr().String()
	}
	f.tcp = serve("tcp", "127.0.0.1:0")
	serve("unix", f.unix)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		for range 2 {
			select {
			case <-done:
			case <-time.After(patience):
				t.Error("Serve goes on after Close")
			}
		}
		if c := b.Census(); c != (pgbounce.Census{}) {
			t.Errorf("left after Close: %+v", c)
		}
		os.RemoveAll(f.folder)
		if t.Failed() {
			t.Log(f.log.tail())
		}
		if strings.Contains(f.log.all(), "bug: ") {
			t.Errorf("the log has a bug:\n%s", f.log.tail())
		}
	})
	return f
}

// A journal is a log that is kept.
type journal struct {
	mu   gosync.Mutex
	text []byte
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.text = append(j.text, p...)
	return len(p), nil
}

func (j *journal) all() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return string(j.text)
}

// tail is what was written last.
func (j *journal) tail() string {
	all := j.all()
	return all[max(0, len(all)-4000):]
}

// databaseAt returns what stands for a database that is at a DSN.
func databaseAt(t testing.TB, dsn string) pgbounce.Database {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	return pgbounce.Database{Hosts: []string{cfg.Host}, Port: int(cfg.Port), Name: cfg.Database}
}

// only is a Config whose one database, called db, is at a DSN.
func only(t *testing.T, dsn string) pgbounce.Config {
	t.Helper()
	return pgbounce.Config{Databases: map[string]pgbounce.Database{"db": databaseAt(t, dsn)}}
}

// adminOf returns a connection to PostgreSQL itself.
func adminOf(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// one returns a value that PostgreSQL has.
func one[T any](t *testing.T, admin *pgx.Conn, sql string, args ...any) (v T) {
	t.Helper()
	require.NoError(t, admin.QueryRow(t.Context(), sql, args...).Scan(&v), sql)
	return v
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "never: %s", what)
	}
}

// A talk is a conversation of messages. It is for one goroutine.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
	key  []byte
	body []byte
	wait time.Duration // for an answer
}

func newTalk(conn net.Conn) *talk {
	return &talk{conn: conn, in: bufio.NewReaderSize(conn, 4<<10), wait: patience}
}

// dial connects in one of three ways: over TCP, a Unix socket or in memory.
func (f *front) dial(way int) (net.Conn, error) {
	switch way % 3 {
	case 0:
		return net.DialTimeout("tcp", f.tcp, patience)
	case 1:
		return net.DialTimeout("unix", f.unix, patience)
	}
	return f.Dial(context.Background(), "", "")
}

func startupPacket(pairs ...string) []byte {
	p := binary.BigEndian.AppendUint32(make([]byte, 4), protocol30)
	for _, s := range pairs {
		p = append(append(p, s...), 0)
	}
	p = append(p, 0)
	binary.BigEndian.PutUint32(p, uint32(len(p)))
	return p
}

// enter logs in.
func (f *front) enter(way int, user, database string, pairs ...string) (*talk, error) {
	conn, err := f.dial(way)
	if err != nil {
		return nil, err
	}
	k := newTalk(conn)
	a, err := k.logIn(append([]string{"user", user, "database", database}, pairs...)...)
	if len(a.codes) > 0 {
		err = fmt.Errorf("login: %s", a)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return k, nil
}

// client logs in, for as long as the test runs.
func (f *front) client(t *testing.T, way int, pairs ...string) *talk {
	t.Helper()
	k, err := f.enter(way, "postgres", "db", pairs...)
	require.NoError(t, err)
	t.Cleanup(func() { k.conn.Close() })
	return k
}

func (k *talk) logIn(pairs ...string) (answer, error) {
	if _, err := k.conn.Write(startupPacket(pairs...)); err != nil {
		return answer{}, err
	}
	return k.answer(1)
}

func encode(messages ...pgproto3.FrontendMessage) (p []byte) {
	for _, m := range messages {
		var err error
		if p, err = m.Encode(p); err != nil {
			panic("bug: " + err.Error())
		}
	}
	return p
}

func (k *talk) write(p []byte) error {
	k.conn.SetWriteDeadline(time.Now().Add(k.wait))
	_, err := k.conn.Write(p)
	return err
}

// next reads a message. Its body is good until the next one.
func (k *talk) next() (kind byte, body []byte, err error) {
	k.conn.SetReadDeadline(time.Now().Add(k.wait))
	var head [5]byte
	if _, err := io.ReadFull(k.in, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(head[1:])) - 4
	if n < 0 || n > 1<<28 || !strings.ContainsRune("123ACDEGHIKNRSTVWZcdnstv", rune(head[0])) {
		return 0, nil, fmt.Errorf("out of step: message %q of %d bytes", head[0], n)
	}
	if cap(k.body) < n {
		k.body = make([]byte, n)
	}
	if _, err := io.ReadFull(k.in, k.body[:n]); err != nil {
		return 0, nil, fmt.Errorf("inside a message: %w", err)
	}
	if head[0] == 'K' {
		k.key = append([]byte(nil), k.body[:n]...)
	}
	return head[0], k.body[:n], nil
}

// An answer is what came up to a ReadyForQuery: the kinds of messages but
// those that come at any time, and the first columns of its rows.
type answer struct {
	kinds, status string
	rows          []string
	codes, texts  []string // of errors
	notices       []string
	tags          []string
}

func (a answer) String() string {
	return fmt.Sprintf("%s %q, errors %q %q", a.kinds, a.rows, a.codes, a.texts)
}

// answer reads up to the n-th ReadyForQuery, or the end.
func (k *talk) answer(n int) (a answer, err error) {
	for n > 0 {
		kind, body, err := k.next()
		if err != nil {
			return a, err
		}
		switch kind {
		case 'N':
			_, text := errorFields(body)
			a.notices = append(a.notices, text)
			continue
		case 'S', 'A', 'K', 'R', 'v':
			continue
		case 'D':
			a.rows = append(a.rows, firstColumn(body))
		case 'd':
			line, _, _ := strings.Cut(strings.TrimSuffix(string(body), "\n"), "\t")
			a.rows = append(a.rows, line)
		case 'E':
			code, text := errorFields(body)
			a.codes, a.texts = append(a.codes, code), append(a.texts, text)
		case 'C':
			a.tags = append(a.tags, strings.TrimRight(string(body), "\x00"))
		case 'Z':
			a.status = string(body)
			n--
		}
		a.kinds += string(rune(kind))
	}
	return a, nil
}

func firstColumn(row []byte) string {
	if len(row) < 6 {
		return ""
	}
	n := int32(binary.BigEndian.Uint32(row[2:]))
	if n < 0 || int(n) > len(row)-6 {
		return fmt.Sprintf("column of %d bytes in a row of %d", n, len(row))
	}
	return string(row[6 : 6+n])
}

func errorFields(body []byte) (code, text string) {
	for field := range strings.SplitSeq(string(body), "\x00") {
		switch {
		case strings.HasPrefix(field, "C"):
			code = field[1:]
		case strings.HasPrefix(field, "M"):
			text = field[1:]
		}
	}
	return code, text
}

// ask sends messages and returns the answer up to a ReadyForQuery.
func (k *talk) ask(t *testing.T, messages ...pgproto3.FrontendMessage) answer {
	t.Helper()
	require.NoError(t, k.write(encode(messages...)))
	a, err := k.answer(1)
	require.NoError(t, err, "after %s", a)
	return a
}

// get returns the one value that a query gives.
func (k *talk) get(t *testing.T, sql string) string {
	t.Helper()
	a := k.ask(t, query(sql))
	require.Empty(t, a.codes, "%s: %s", sql, a)
	require.Len(t, a.rows, 1, sql)
	return a.rows[0]
}

// do is a query without rows.
func (k *talk) do(t *testing.T, sql string) {
	t.Helper()
	a := k.ask(t, query(sql))
	require.Empty(t, a.codes, "%s: %s", sql, a)
}

// last reads up to the end of the connection and returns the last error.
func (k *talk) last(t *testing.T) string {
	t.Helper()
	a, err := k.answer(1 << 30)
	require.ErrorIs(t, err, io.EOF, "after %s", a)
	require.NotEmpty(t, a.texts, "it ended without a word")
	return a.texts[len(a.texts)-1]
}

// pid returns the process of the server that the client gets now.
func (k *talk) pid(t *testing.T) string {
	t.Helper()
	return k.get(t, "select pg_backend_pid()")
}

// cancel sends a cancel request with a key, and returns the connection, which
// is closed when it is done.
func (f *front) cancel(way int, key []byte) (net.Conn, error) {
	conn, err := f.dial(way)
	if err != nil {
		return nil, err
	}
	p := binary.BigEndian.AppendUint32(nil, uint32(8+len(key)))
	p = append(binary.BigEndian.AppendUint32(p, 80877102), key...)
	if _, err := conn.Write(p); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// canceled reads up to the end of a cancel request.
func (f *front) canceled(conn net.Conn) error {
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || err == nil {
		return fmt.Errorf("a cancel request was answered")
	}
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return fmt.Errorf("a cancel request is not done: %w", err)
	}
	return nil
}
