package pgbounce_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	gosync "sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// survives sees that a Bouncer still does its work, and that nothing panicked,
// which the end of newFront looks for.
func survives(t *testing.T, f *front) {
	t.Helper()
	k := f.client(t, 0)
	require.Equal(t, "1", k.get(t, "select 1"))
	k.conn.Close()
}

// pour sends bytes on a new connection and reads whatever comes, until the
// other side has nothing more to say.
func pour(t *testing.T, f *front, way int, p []byte) {
	t.Helper()
	conn, err := f.dial(way)
	require.NoError(t, err)
	defer conn.Close()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		conn.SetReadDeadline(time.Now().Add(patience))
		io.Copy(io.Discard, conn)
	}()
	conn.SetWriteDeadline(time.Now().Add(patience))
	conn.Write(p) // may fail, as the other side may hang up
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	} else {
		conn.Close()
	}
	select {
	case <-drained:
	case <-time.After(patience / 2):
		t.Error("a client that has ended is kept")
	}
}

// validStream is what a client may say after its login.
func validStream() []byte {
	return encode(
		query("select 1; select 2"), query("begin"), query("select 1/0"), query("rollback"),
		parse("s", "select $1::int"), bind("p", "s", "1"), describePortal("p"), execute("p"), closePortal("p"), flush, sync,
		parse("", "select $1::text"), describeStatement(""), bind("", "", nil), execute("", 1), sync,
		closeStatement("s"), bind("", "s"), sync, query("copy (select 1) to stdout"),
		query("create temp table if not exists f (id int)"), query("copy f from stdin"), data("1\n"), copyDone,
		query("set pgbounce.shard = 1"), query("reset pgbounce.shard"), query("set application_name = 'x'"),
		&pgproto3.FunctionCall{Function: 1598, ResultFormatCode: 1}, query("deallocate all"), query("listen x"),
	)
}

func FuzzStartup(f *testing.F) {
	for _, p := range [][]byte{
		startupPacket("user", "postgres", "database", "db"),
		startupPacket("user", "postgres", "database", "db", "options", `-c a=b --c\ d=e`, "_pq_.x", "1", "replication", "database"),
		startupPacket("user", "postgres", "database", "pgbouncer"),
		{0, 0, 0, 8, 4, 210, 22, 47},
		{0, 0, 0, 8, 4, 210, 22, 48},
		{0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2},
		{0x16, 3, 1},
		{0, 0, 0, 4},
		{0, 0, 0, 9, 0, 3, 0, 0, 0},
	} {
		f.Add(p)
	}
	front := fuzzed(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		pour(t, front, len(p), p)
		checkLog(t, front)
	})
}

func FuzzClientStream(f *testing.F) {
	f.Add(validStream())
	f.Add([]byte("Q\x00\x00\x00\x04"))
	front := fuzzed(f)
	f.Fuzz(func(t *testing.T, p []byte) {
		pour(t, front, len(p), append(startupPacket("user", "postgres", "database", "db"), p...))
		checkLog(t, front)
	})
}

// fuzzed starts a Bouncer for a fuzz test.
func fuzzed(f *testing.F) *front {
	return newFront(f, pgbounce.Config{
		Databases: map[string]pgbounce.Database{"db": databaseAt(f, testserver.Postgres(f))}, PoolSize: 5, QuietConnections: true,
		RecoverTimeout: time.Second, QueryTimeout: 2 * time.Second,
	})
}

func checkLog(t *testing.T, f *front) {
	t.Helper()
	require.NotContains(t, f.log.all(), "bug: ")
}

// mutate changes some of p.
func mutate(random *rand.Rand, p []byte) []byte {
	p = bytes.Clone(p)
	for range 1 + random.IntN(4) {
		at := random.IntN(len(p))
		switch random.IntN(5) {
		case 0:
			p[at] = byte(random.Uint32())
		case 1:
			p = p[:max(1, at)]
		case 2:
			p = append(p[:at:at], p[min(len(p)-1, at+random.IntN(20)):]...)
		case 3:
			p = append(p[:at:at], append([]byte{0, 0, 0, byte(random.Uint32())}, p[at:]...)...)
		case 4:
			p[at] ^= 1 << random.IntN(8)
		}
		if len(p) == 0 {
			return []byte{0}
		}
	}
	return p
}

// Clients that talk nonsense harm nobody else.
func TestNonsenseFromClients(t *testing.T) {
	t.Parallel()
	cfg := only(t, testserver.Postgres(t))
	cfg.PoolSize, cfg.QuietConnections, cfg.Loops = 5, true, 2
	cfg.QueryTimeout, cfg.RecoverTimeout, cfg.ClientLoginTimeout = 3*time.Second, time.Second, 3*time.Second
	f := newFront(t, cfg)
	require.NoError(t, f.StartLoops(2))
	login := startupPacket("user", "postgres", "database", "db")
	stream := append(bytes.Clone(login), validStream()...)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var group gosync.WaitGroup
	for worker := range 8 {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		group.Go(func() {
			for i := range 60 {
				p := append(bytes.Clone(login), mutate(random, validStream())...)
				if i%4 == 0 {
					p = mutate(random, stream)
				}
				pour(t, f, i, p)
			}
		})
	}
	group.Wait()
	survives(t, f)
	eventually(t, "all are gone", func() bool { c := f.Census(); return c.Clients+c.Logins+c.Counted+c.Waiters == 0 })
}

// hostile is a PostgreSQL that logs everybody in and then says what it likes.
func hostile(t *testing.T, say func(conn net.Conn, random *rand.Rand)) pgbounce.Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var group gosync.WaitGroup
	var mu gosync.Mutex
	open := map[net.Conn]bool{}
	group.Go(func() {
		for n := uint64(0); ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			group.Go(func() {
				defer conn.Close()
				var size [4]byte
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(size[:]))-4); err != nil {
					return
				}
				say(conn, rand.New(rand.NewPCG(n, 7)))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	addr := l.Addr().(*net.TCPAddr)
	return pgbounce.Config{
		Databases:        map[string]pgbounce.Database{"db": {Hosts: []string{"127.0.0.1"}, Port: addr.Port}},
		ServerLoginRetry: time.Millisecond, ServerConnectTimeout: time.Second, RecoverTimeout: 300 * time.Millisecond,
		QueryTimeout: 500 * time.Millisecond, QueryWaitTimeout: time.Second, CancelWaitTimeout: 300 * time.Millisecond,
		QuietConnections: true, PoolSize: 5,
	}
}

// tells encodes what a server says.
func tells(messages ...pgproto3.BackendMessage) (p []byte) {
	for _, m := range messages {
		var err error
		if p, err = m.Encode(p); err != nil {
			panic("bug: " + err.Error())
		}
	}
	return p
}

var (
	ready   = &pgproto3.ReadyForQuery{TxStatus: 'I'}
	welcome = tells(&pgproto3.AuthenticationOk{}, &pgproto3.ParameterStatus{Name: "server_version", Value: "15"},
		&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 2}}, ready)
	reply = tells(&pgproto3.RowDescription{}, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, ready)
)

// A server that talks nonsense ends nothing but its own connection.
func TestNonsenseFromServers(t *testing.T) {
	t.Parallel()
	answers := tells(&pgproto3.RowDescription{}, &pgproto3.DataRow{}, &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")},
		&pgproto3.ParseComplete{}, &pgproto3.BindComplete{}, &pgproto3.CloseComplete{}, &pgproto3.NoData{}, &pgproto3.PortalSuspended{},
		&pgproto3.EmptyQueryResponse{}, &pgproto3.ParameterDescription{}, &pgproto3.ErrorResponse{Severity: "ERROR", Code: "22012", Message: "x"},
		&pgproto3.ParameterStatus{Name: "a", Value: "b"}, &pgproto3.NotificationResponse{PID: 1, Channel: "x", Payload: "y"},
		&pgproto3.CopyInResponse{}, &pgproto3.CopyOutResponse{}, &pgproto3.CopyDone{}, ready)
	extra := []string{
		"Z\x00\x00\x00\x04", "E\x00\x00\x00\x04", "S\x00\x00\x00\x04", "C\x00\x00\x00\x04", "Z\x00\x00\x00\x05T", "Z\x00\x00\x00\x05\xff",
		"D\x7f\xff\xff\xff", "D\xff\xff\xff\xff", "Z\x00\x00\x00\x06II", "A\x00\x00\x00\x04", "\x00\x00\x00\x00\x00", "R\x00\x00\x00\x04", "K\x00\x00\x00\x04",
	}
	t.Run("AfterTheLogin", func(t *testing.T) {
		t.Parallel()
		cfg := hostile(t, func(conn net.Conn, random *rand.Rand) {
			conn.Write(welcome)
			for buf := make([]byte, 4096); ; {
				if _, err := conn.Read(buf); err != nil {
					return
				}
				p := mutate(random, answers)
				if random.IntN(3) == 0 {
					p = []byte(extra[random.IntN(len(extra))])
				}
				if _, err := conn.Write(p); err != nil {
					return
				}
			}
		})
		f := newFront(t, cfg)
		var group gosync.WaitGroup
		for range 8 {
			group.Go(func() {
				for i := range 25 {
					pour(t, f, i, append(startupPacket("user", "postgres", "database", "db"), validStream()[:100+i*10]...))
				}
			})
		}
		group.Wait()
	})
	t.Run("InTheLogin", func(t *testing.T) {
		t.Parallel()
		cfg := hostile(t, func(conn net.Conn, random *rand.Rand) {
			p := mutate(random, append(tells(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{"SCRAM-SHA-256"}}), welcome...))
			if random.IntN(2) == 0 {
				p = []byte(extra[random.IntN(len(extra))])
			}
			conn.Write(p)
		})
		f := newFront(t, cfg)
		for i := range 60 {
			pour(t, f, i, startupPacket("user", "postgres", "database", "db"))
		}
	})
	// What is half told to nobody is not told to the next client.
	t.Run("HalfANotification", func(t *testing.T) {
		t.Parallel()
		idle, half := make(chan struct{}), make(chan struct{}, 1)
		letter := tells(&pgproto3.NotificationResponse{PID: 1, Channel: "photos", Payload: "a letter for nobody"})
		cfg := hostile(t, func(conn net.Conn, _ *rand.Rand) {
			buf := make([]byte, 4096)
			conn.Write(welcome)
			conn.Read(buf)
			conn.Write(reply)
			<-idle
			conn.Write(letter[:20])
			half <- struct{}{}
			conn.Read(buf)
			conn.Write(append(bytes.Clone(letter[20:]), reply...))
			conn.Read(buf)
		})
		cfg.QueryTimeout = -1
		f := newFront(t, cfg)
		k := f.client(t, 0)
		require.Equal(t, "TCZ", k.ask(t, query("select 1")).kinds)
		eventually(t, "the server is idle", func() bool { return f.Idle() == 1 })
		close(idle)
		<-half
		require.Equal(t, "TCZ", f.client(t, 1).ask(t, query("select 1")).kinds)
	})
}
