package pgbounce_test

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// breakable starts a PostgreSQL for one test.
func breakable(t *testing.T, settings map[string]string) *localserver.Postgres {
	t.Helper()
	server, err := testserver.Host(t).Postgres(t.Context(), "postgres", localserver.PostgresConfig{Settings: settings})
	require.NoError(t, err)
	return server
}

func TestPostgresGoesAndComesBack(t *testing.T) {
	t.Parallel()
	server := breakable(t, nil)
	cfg := only(t, server.DSN("postgres"))
	cfg.ServerLoginRetry = 50 * time.Millisecond
	f := newFront(t, cfg)
	tests := []struct {
		name string
		fail func() error
		mend func() error
	}{
		{"Restarted", func() error { return nil }, func() error { return server.Restart(t.Context()) }},
		{"Killed", server.Kill, func() error { return server.Restart(t.Context()) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			idle, busy, asking := f.client(t, 0), f.client(t, 1), f.client(t, 2)
			idle.do(t, "select 1")
			busy.do(t, "begin")
			require.NoError(t, asking.write(encode(query("select pg_sleep(60)"))))
			admin, err := pgx.Connect(t.Context(), server.DSN("postgres"))
			require.NoError(t, err)
			asleep(t, admin, 1)
			require.NoError(t, admin.Close(t.Context()))
			require.NoError(t, tt.fail())
			require.NoError(t, tt.mend())
			for _, k := range []*talk{busy, asking} {
				require.Regexp(t, "terminating connection|server conn|server connection", k.last(t))
			}
			require.Equal(t, "1", idle.get(t, "select 1"))
			require.Equal(t, "1", f.client(t, 0).get(t, "select 1"))
		})
	}
	t.Run("Paused", func(t *testing.T) {
		k, late := f.client(t, 0), f.client(t, 1)
		k.do(t, "select 1")
		require.NoError(t, server.Pause())
		require.NoError(t, k.write(encode(query("select 1"))))
		require.NoError(t, late.write(encode(query("select 2"))))
		k.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := k.in.ReadByte()
		require.ErrorContains(t, err, "timeout")
		require.NoError(t, server.Resume())
		a, err := k.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"1"}, a.rows)
		a, err = late.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"2"}, a.rows)
	})
}

func TestPostgresRefuses(t *testing.T) {
	t.Parallel()
	server := breakable(t, map[string]string{"max_connections": "6", "superuser_reserved_connections": "0", "max_wal_senders": "0"})
	cfg := only(t, server.DSN("postgres"))
	cfg.Databases["*"] = cfg.Databases["db"]
	absent := cfg.Databases["db"]
	absent.Name = "absent"
	cfg.Databases["absent"] = absent
	cfg.ServerLoginRetry = 50 * time.Millisecond
	f := newFront(t, cfg)
	t.Run("NoSuchDatabase", func(t *testing.T) {
		_, err := f.enter(0, "postgres", "absent")
		require.ErrorContains(t, err, `database \"absent\" does not exist`)
		require.ErrorContains(t, err, "3D000")
	})
	t.Run("NoSuchRole", func(t *testing.T) {
		_, err := f.enter(0, "nobody", "db")
		require.ErrorContains(t, err, `role \"nobody\" does not exist`)
	})
	t.Run("TooManyConnections", func(t *testing.T) {
		k := f.client(t, 0)
		pid := k.pid(t)
		var others []*pgx.Conn
		for {
			conn, err := pgx.Connect(t.Context(), server.DSN("postgres"))
			if err != nil {
				require.ErrorContains(t, err, "53300")
				break
			}
			others = append(others, conn)
		}
		_, err := f.enter(0, "postgres", "other")
		require.ErrorContains(t, err, "53300")
		// Who has a server is not harmed, and who waits for one gets it later.
		require.Equal(t, pid, k.pid(t))
		k.do(t, "begin")
		late := f.client(t, 1)
		require.NoError(t, late.write(encode(query("select 2"))))
		eventually(t, "it waits", func() bool { return f.Census().Waiters == 1 })
		for _, conn := range others {
			require.NoError(t, conn.Close(t.Context()))
		}
		a, err := late.answer(1)
		require.NoError(t, err)
		require.Equal(t, []string{"2"}, a.rows)
		k.do(t, "commit")
	})
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	const short = 200 * time.Millisecond
	hold := func(t *testing.T, f *front) {
		t.Helper()
		f.client(t, 0).do(t, "begin")
	}
	tests := []struct {
		name, text string
		cfg        pgbounce.Config
		do         func(t *testing.T, f *front, k *talk)
	}{
		{"QueryWait", "query_wait_timeout", pgbounce.Config{QueryWaitTimeout: short}, func(t *testing.T, f *front, k *talk) {
			hold(t, f)
			require.NoError(t, k.write(encode(query("select 1"))))
		}},
		{"Query", "query_timeout", pgbounce.Config{QueryTimeout: short}, func(t *testing.T, _ *front, k *talk) {
			require.NoError(t, k.write(encode(query("select pg_sleep(60)"))))
		}},
		{"Transaction", "transaction timeout", pgbounce.Config{TransactionTimeout: short}, func(t *testing.T, _ *front, k *talk) {
			k.do(t, "begin")
			k.do(t, "select 1")
		}},
		{"IdleTransaction", "idle transaction timeout", pgbounce.Config{IdleTransactionTimeout: short}, func(t *testing.T, _ *front, k *talk) {
			k.do(t, "begin")
			k.do(t, "select pg_sleep(0.5)") // is not idle
		}},
		{"ClientIdle", "client_idle_timeout", pgbounce.Config{ClientIdleTimeout: short}, func(t *testing.T, _ *front, k *talk) {
			k.do(t, "begin; select pg_sleep(0.5); commit")
		}},
		{"OfAUser", "query_timeout", pgbounce.Config{QueryTimeout: time.Hour, Users: map[string]pgbounce.User{"postgres": {QueryTimeout: short}}}, func(t *testing.T, _ *front, k *talk) {
			require.NoError(t, k.write(encode(query("select pg_sleep(60)"))))
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dsn := testserver.Postgres(t)
			admin := adminOf(t, dsn)
			cfg := tt.cfg
			cfg.Databases, cfg.PoolSize = only(t, dsn).Databases, 1
			f := newFront(t, cfg)
			k := f.client(t, 1)
			tt.do(t, f, k)
			require.Equal(t, tt.text, k.last(t))
			asleep(t, admin, 0)
		})
	}
	t.Run("ClientLogin", func(t *testing.T) {
		t.Parallel()
		cfg := only(t, testserver.Postgres(t))
		cfg.ClientLoginTimeout = short
		f := newFront(t, cfg)
		for way := range 3 {
			for _, n := range []int{0, 3, 20} {
				conn, err := f.dial(way)
				require.NoError(t, err)
				_, err = conn.Write(startupPacket("user", "postgres", "database", "db")[:n])
				require.NoError(t, err)
				require.Equal(t, "client_login_timeout", newTalk(conn).last(t))
				conn.Close()
			}
		}
		require.Equal(t, "1", f.client(t, 0).get(t, "select 1 from pg_sleep(0.5)"))
	})
	t.Run("Off", func(t *testing.T) {
		t.Parallel()
		cfg := only(t, testserver.Postgres(t))
		cfg.QueryTimeout, cfg.ClientIdleTimeout = -1, -1
		k := newFront(t, cfg).client(t, 0)
		require.Equal(t, "1", k.get(t, "select 1 from pg_sleep(0.6)"))
	})
}

// heap returns how much memory is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// Clients that do not read cost little memory, and others no time. It runs
// alone, for it measures.
func TestSlowReaders(t *testing.T) {
	dsn := testserver.Postgres(t)
	cfg := only(t, dsn)
	f := newFront(t, cfg)
	require.NoError(t, f.StartLoops(1))
	const rows, size, readers = 20, 1_000_000, 9
	f.client(t, 0).do(t, "select 1")
	before := heap()
	var slow []*talk
	for way := range readers {
		k := f.client(t, way)
		require.NoError(t, k.write(encode(query("select repeat('x', 1000000) from generate_series(1, 20)"))))
		_, err := k.in.ReadByte()
		require.NoError(t, err)
		require.NoError(t, k.in.UnreadByte())
		slow = append(slow, k)
	}
	quick := f.client(t, 0)
	for range 100 {
		require.Equal(t, "1", quick.get(t, "select 1"))
	}
	require.Less(t, heap()-before, int64(readers*1<<20), "%d results of %d MB", readers, rows*size>>20)
	for _, k := range slow {
		var got int
		for buf := make([]byte, 8<<10); got < rows*size; {
			n, err := k.in.Read(buf)
			require.NoError(t, err)
			got += n
		}
	}
}

// A length is not believed before the bytes have come.
func TestLengths(t *testing.T) {
	dsn := testserver.Postgres(t)
	cfg := only(t, dsn)
	f := newFront(t, cfg)
	head := func(kind byte, length uint32) []byte {
		return binary.BigEndian.AppendUint32([]byte{kind}, length)
	}
	t.Run("Startup", func(t *testing.T) {
		before := heap()
		for _, length := range []uint32{0, 3, 7, 10_001, 1 << 30, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
			conn, err := f.dial(0)
			require.NoError(t, err)
			_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, length), 0, 3, 0, 0))
			require.NoError(t, err)
			require.Equal(t, "invalid length of startup packet", newTalk(conn).last(t), length)
			conn.Close()
		}
		require.Less(t, heap()-before, int64(4<<20))
	})
	t.Run("Refused", func(t *testing.T) {
		for _, kind := range []byte("QPBDECSHXFdcf") {
			for _, length := range []uint32{0, 3, 1 << 30, 1 << 31, 1<<32 - 1} {
				k := f.client(t, 0)
				require.NoError(t, k.write(head(kind, length)))
				require.Equal(t, "invalid message length", k.last(t), "%c of %d", kind, length)
			}
		}
		k := f.client(t, 0)
		require.NoError(t, k.write(head('?', 4)))
		require.Regexp(t, "invalid frontend message type", k.last(t))
	})
	t.Run("Large", func(t *testing.T) {
		before := heap()
		for i := range 60 {
			k := f.client(t, i)
			message := head("QPBdF"[i%5], 1<<30-2)
			require.NoError(t, k.write(append(message, "\x00select 1 -- and then nothing"...)))
		}
		quick := f.client(t, 0)
		for range 20 {
			require.Equal(t, "1", quick.get(t, "select 1"))
		}
		require.Less(t, heap()-before, int64(40<<20))
	})
	require.Equal(t, "1", f.client(t, 0).get(t, "select 1"))
}

// Encryption may be asked for in either order, and both refused.
func TestRequestsForEncryption(t *testing.T) {
	t.Parallel()
	f := newFront(t, only(t, testserver.Postgres(t)))
	ssl := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877103)
	gss := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 8), 80877104)
	hello := "\x16\x03\x01\x00\x05hello"
	tests := []struct {
		name   string
		sends  []string
		refuse bool
	}{
		{name: "SSL", sends: []string{string(ssl)}},
		{name: "GSS", sends: []string{string(gss)}},
		{name: "SSLThenGSS", sends: []string{string(ssl), string(gss)}},
		{name: "GSSThenSSL", sends: []string{string(gss), string(ssl)}},
		{name: "SSLTwice", sends: []string{string(ssl), string(ssl)}, refuse: true},
		{name: "GSSTwice", sends: []string{string(gss), string(gss)}, refuse: true},
		{name: "DirectTLS", sends: []string{hello}, refuse: true},
		{name: "Web", sends: []string{"GET / HTTP/1.1\r\n\r\n"}, refuse: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn, err := f.dial(0)
			require.NoError(t, err)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			refused := false
			for _, s := range tt.sends {
				_, err := io.WriteString(conn, s)
				require.NoError(t, err)
				answer := make([]byte, 1)
				if _, err := conn.Read(answer); err != nil || answer[0] != 'N' {
					refused = true
					break
				}
			}
			require.Equal(t, tt.refuse, refused)
			if !refused {
				a, err := newTalk(conn).logIn("user", "postgres", "database", "db")
				require.NoError(t, err)
				require.Empty(t, a.codes)
			}
		})
	}
}

// What is written at the end of a client never falls into a row.
func TestAnEndInsideARow(t *testing.T) {
	t.Parallel()
	dsn := testserver.Postgres(t)
	cfg := only(t, dsn)
	cfg.QueryTimeout = 2 * time.Second
	f := newFront(t, cfg)
	k := f.client(t, 0)
	require.NoError(t, k.conn.(*net.TCPConn).SetReadBuffer(4<<10))
	require.NoError(t, k.write(encode(query("select repeat('x', 30000000)"))))
	first, _, err := k.next()
	require.NoError(t, err)
	require.Equal(t, "T", string(first))
	eventually(t, "it is ended", func() bool { return strings.Contains(f.log.all(), "query_timeout") })
	kind, body, err := k.next()
	require.Error(t, err, "message %q of %d bytes", kind, len(body))
	require.NotContains(t, string(k.body), "timeout")
}
