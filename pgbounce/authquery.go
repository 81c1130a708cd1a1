package pgbounce

import (
	"cmp"
	"context"
	"net"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
)

// defaultAuthQuery names everything with its schema, so that no search_path can
// put something else in its place, and gives out no password that has expired.
const defaultAuthQuery = `select rolname::pg_catalog.text, case when rolvaliduntil operator(pg_catalog.<) pg_catalog.now() then null else rolpassword end
from pg_catalog.pg_authid where rolname operator(pg_catalog.=) $1 and rolcanlogin`

// An asker asks one database for secrets, over a connection of its own that no
// client has ever used.
type asker struct {
	mu   sync.Mutex
	conn *pgconn.PgConn
}

// authQuery asks PostgreSQL for a user's secret.
func (b *Bouncer) authQuery(ctx context.Context, name string, db Database, as, user string) (text string, known bool, err error) {
	cfg := b.config()
	if other := cmp.Or(db.AuthDatabase, cfg.Auth.Database); other != "" && other != name {
		var ok bool
		if db, ok = cfg.database(other); !ok {
			return "", false, fatal("08P01", "bouncer config error")
		}
		name = other
	}
	query := cmp.Or(db.AuthQuery, cfg.Auth.Query, defaultAuthQuery)
	b.mu.Lock()
	a := b.askers[name]
	if a == nil {
		a = &asker{}
		b.askers[name] = a
	}
	b.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	for try := 0; ; try++ {
		fresh := a.conn == nil || a.conn.IsClosed()
		if fresh {
			if a.conn, err = b.dialAsker(ctx, name, db, as); err != nil {
				b.mu.Lock()
				delete(b.askers, name) // whoever names databases that are not there leaves none
				b.mu.Unlock()
				b.log().Error("pgbounce: auth_query failed", "database", name, "error", err.Error())
				return "", false, fatal("08P01", "bouncer config error")
			}
		}
		r := a.conn.ExecParams(ctx, query, [][]byte{[]byte(user)}, nil, nil, nil).Read()
		if r.Err == nil {
			if len(r.Rows) == 0 || len(r.Rows[0]) < 2 || r.Rows[0][1] == nil {
				return "", false, nil
			}
			return string(r.Rows[0][1]), true, nil
		}
		_ = a.conn.Close(ctx)
		if fresh || try > 0 || ctx.Err() != nil {
			b.log().Error("pgbounce: auth_query failed", "database", name, "error", r.Err.Error())
			return "", false, fatal("08P01", "bouncer config error")
		}
	}
}

// dialAsker connects to the first of the database's hosts that lets it in.
func (b *Bouncer) dialAsker(ctx context.Context, name string, db Database, as string) (conn *pgconn.PgConn, err error) {
	for _, host := range db.hosts(0) {
		if conn, err = b.dialAskerAt(ctx, name, db, host, as); err == nil || ctx.Err() != nil {
			break
		}
	}
	return conn, err
}

func (b *Bouncer) dialAskerAt(ctx context.Context, name string, db Database, host, as string) (*pgconn.PgConn, error) {
	cfg := b.config()
	c, err := pgconn.ParseConfig("host=localhost sslmode=disable")
	if err != nil {
		return nil, err
	}
	network, addr, host := db.address(host)
	c.Host = host
	c.Port = uint16(cmp.Or(db.Port, 5432))
	c.User, c.Password = as, cfg.Auth.Secrets[as]
	if as == db.User && db.Password != "" {
		c.Password = db.Password
	}
	c.Database = cmp.Or(db.Name, name)
	c.RuntimeParams = map[string]string{"application_name": "pgbounce auth_query"}
	c.ConnectTimeout = cfg.ServerConnectTimeout
	c.Fallbacks = nil
	c.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	c.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	if t := cfg.ServerTLS; t.Mode > TLSAllow && network != "unix" {
		c.TLSConfig = t.clientConfig(host)
		if t.Mode == TLSPrefer {
			c.Fallbacks = []*pgconn.FallbackConfig{{Host: c.Host, Port: c.Port}}
		}
	}
	return pgconn.ConnectConfig(ctx, c)
}
