package pgbounce_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/pgbounce"
)

// postgres is where the examples' PostgreSQL is; in life, &Database{Hosts:
// []string{"db1"}} may be all there is to say.
func postgres() pgbounce.Database {
	c, err := pgx.ParseConfig(testserver.PostgresDSN())
	if err != nil {
		panic(err)
	}
	return pgbounce.Database{Hosts: []string{c.Host}, Port: int(c.Port), Name: c.Database, User: c.User, Password: c.Password}
}

var quiet = slog.New(slog.DiscardHandler)

// A program that lets others in over TCP: a hundred clients share four servers.
func Example() {
	bouncer, err := pgbounce.New(pgbounce.Config{
		Databases: map[string]pgbounce.Database{"app": postgres()},
		PoolSize:  4,
		Log:       quiet,
	})
	if err != nil {
		panic(err)
	}
	defer bouncer.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go bouncer.Serve(context.Background(), listener)

	ctx, pids := context.Background(), make(chan int)
	for range 100 {
		go func() {
			conn, err := pgx.Connect(ctx, "postgres://alice@"+listener.Addr().String()+"/app?sslmode=disable")
			if err != nil {
				panic(err)
			}
			defer conn.Close(ctx)
			var pid int
			if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&pid); err != nil {
				panic(err)
			}
			pids <- pid
		}()
	}
	servers := map[int]bool{}
	for range 100 {
		servers[<-pids] = true
	}
	fmt.Println("at most 4 servers:", len(servers) <= 4)
	// Output: at most 4 servers: true
}

// The program's own pgxpool goes through the pooler in memory. It may have any
// number of connections: they cost no server until they do something.
func ExampleBouncer_Dial() {
	bouncer, err := pgbounce.New(pgbounce.Config{
		Databases: map[string]pgbounce.Database{"app": postgres()},
		Log:       quiet,
	})
	if err != nil {
		panic(err)
	}
	defer bouncer.Close()

	// A host that is a folder: pgx looks no name up.
	cfg, err := pgxpool.ParseConfig("host=/pgbounce user=alice dbname=app sslmode=disable pool_max_conns=200")
	if err != nil {
		panic(err)
	}
	cfg.ConnConfig.DialFunc = bouncer.Dial

	ctx := context.Background()
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	var sum int
	if err := pool.QueryRow(ctx, "select $1::int + 1", 41).Scan(&sum); err != nil {
		panic(err)
	}
	fmt.Println(sum)
	// Output: 42
}

// byCity is a Router: it knows by heart where each shard lies.
type byCity map[string]string

func (m byCity) Node(_, shard string, _ bool) (string, error) {
	node, ok := m[shard]
	if !ok {
		return "", fmt.Errorf("no shard %q", shard)
	}
	return node, nil
}

// A client in any language says which shard its next transactions are for.
func ExampleRouter() {
	north, south := postgres(), postgres()
	north.Parameters = map[string]string{"application_name": "north"}
	south.Parameters = map[string]string{"application_name": "south"}
	bouncer, err := pgbounce.New(pgbounce.Config{
		Databases: map[string]pgbounce.Database{"app": north, "north": north, "south": south},
		Router:    byCity{"oslo": "north", "rome": "south"},
		Log:       quiet,
	})
	if err != nil {
		panic(err)
	}
	defer bouncer.Close()
	cfg, err := pgx.ParseConfig("host=/pgbounce user=alice dbname=app sslmode=disable")
	if err != nil {
		panic(err)
	}
	cfg.DialFunc = bouncer.Dial

	ctx := context.Background()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		panic(err)
	}
	defer conn.Close(ctx)
	for _, city := range []string{"oslo", "rome", "atlantis"} {
		if _, err := conn.Exec(ctx, "set pgbounce.shard = '"+city+"'"); err != nil {
			panic(err)
		}
		var one int
		err := conn.QueryRow(ctx, "select 1").Scan(&one)
		fmt.Println(city, one, err != nil && strings.Contains(err.Error(), "no shard"))
	}
	// Output:
	// oslo 1 false
	// rome 1 false
	// atlantis 0 true
}

// What the command does: a file of PgBouncer, as it is.
func ExampleReadINI() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ini := filepath.Join(dir, "pgbouncer.ini")
	err = os.WriteFile(ini, []byte(`
[databases]
app = host=10.0.0.1 dbname=app_1 pool_size=40
[pgbouncer]
listen_addr = 127.0.0.1
auth_type = trust
pool_mode = transaction
`), 0o600)
	if err != nil {
		panic(err)
	}
	file, err := pgbounce.ReadINI(ini)
	if err != nil {
		panic(err)
	}
	fmt.Println(file.Config.Mode, file.ListenAddrs, file.Port, file.Config.Databases["app"].PoolSize)

	file.Config.Log = quiet
	bouncer, err := pgbounce.New(file.Config)
	if err != nil {
		panic(err)
	}
	// … Serve on what the file names, and at the end:
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := bouncer.Shutdown(ctx); err != nil {
		panic(err)
	}
	// Output: transaction [127.0.0.1] 6432 40
}
