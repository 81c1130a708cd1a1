package shard

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

var (
	// ErrNoCatalog is returned by the methods of a PostgresCatalog whose tables
	// are not there.
	ErrNoCatalog = errors.New("there is no catalog yet: make it with Init, or shardctl init")

	// ErrNewerCatalog is returned by the methods of a PostgresCatalog whose
	// tables this version of the package does not know.
	ErrNewerCatalog = errors.New("the catalog was made by a newer version of shardgram")
)

// catalogFormat is the version of the tables in catalog.sql.
const catalogFormat = 1

//go:embed catalog.sql
var catalogSQL string

// PostgresCatalogConfig is what NewPostgresCatalog takes beside the DSN. The
// zero value works.
type PostgresCatalogConfig struct {
	// Schema is where the tables are: 1 to 40 letters a-z, digits and
	// underscores, a letter first, and not pg_. Default: "shardgram".
	Schema string
}

// A PostgresCatalog is a catalog in a database, in a schema of its own; [Init]
// makes it. The database may be that of a node. It is safe for concurrent use.
//
// A change is one transaction: it takes place if the shard's epoch is still the
// one that the caller knew, and tells those who wait by NOTIFY. That is a hint
// only, as it is lost when a connection is; PgBouncer in transaction mode loses
// all of them. The DSNs of the nodes are in the tables, with their passwords.
//
// Load is one round trip, Wait one and then none until there is a change, Place
// and Migrated are four. There are at most two connections, and one for each Wait
// at a time, of which a cluster has one.
//
// To follow the map a program needs usage of the schema and select on the tables;
// to move and migrate shards, all rights to them.
//
// A cluster goes on with the map it has while the database is down. What a
// failover of the database to an asynchronous replica loses is lost for the
// catalog too: give it a synchronous one.
type PostgresCatalog struct {
	schema string
	pool   *pgxpool.Pool
	hints  *pgxpool.Pool // its connections listen
	loaded atomic.Pointer[Map]

	run   context.Context // of Wait
	stop  context.CancelFunc
	close sync.Once
}

var _ Catalog = (*PostgresCatalog)(nil)

// NewPostgresCatalog returns the catalog of a database, given as a connection
// string or URL of pgx. If that lists several hosts, the catalog goes to the one
// that takes writes. It does not dial; Close ends the goroutines of its pools.
func NewPostgresCatalog(dsn string, cfg PostgresCatalogConfig) (*PostgresCatalog, error) {
	if cfg.Schema == "" {
		cfg.Schema = "shardgram"
	}
	if err := checkSchema(cfg.Schema); err != nil {
		return nil, fmt.Errorf("shard: PostgresCatalogConfig.Schema: %w", err)
	}
	if dsn == "" {
		return nil, errors.New("shard: the catalog has no DSN")
	}
	conns, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		// pgx's error repeats most of the DSN.
		return nil, errors.New("shard: the DSN of the catalog is not valid")
	}
	if !strings.Contains(dsn, "connect_timeout") {
		conns.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	if len(hostsOf(conns.ConnConfig)) > 1 && conns.ConnConfig.ValidateConnect == nil {
		conns.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	conns.MaxConns, conns.MinConns, conns.MinIdleConns = 2, 0, 0
	p := &PostgresCatalog{schema: cfg.Schema}
	p.run, p.stop = context.WithCancel(context.Background())
	if p.pool, err = pgxpool.NewWithConfig(p.run, conns); err != nil {
		p.stop()
		return nil, fmt.Errorf("shard: catalog: %w", err)
	}
	conns = conns.Copy()
	conns.MaxConns = 64
	conns.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "listen "+p.schema)
		return err
	}
	if p.hints, err = pgxpool.NewWithConfig(p.run, conns); err != nil {
		p.stop()
		p.pool.Close()
		return nil, fmt.Errorf("shard: catalog: %w", err)
	}
	return p, nil
}

// Close ends every Wait, waits for the other calls and closes the connections.
// It always returns nil; it may be called twice.
func (p *PostgresCatalog) Close() error {
	p.close.Do(func() {
		p.stop()
		p.hints.Close()
		p.pool.Close()
	})
	return nil
}

// String and GoString keep fmt from the pools, which change meanwhile.
func (p *PostgresCatalog) String() string   { return "shard.PostgresCatalog in " + p.schema }
func (p *PostgresCatalog) GoString() string { return p.String() }

// sql returns a text for the schema that the tables are in.
func (p *PostgresCatalog) sql(text string) string {
	return strings.ReplaceAll(text, "shardgram.", p.schema+".")
}

// Load returns the whole map, all of it as it was at one time.
func (p *PostgresCatalog) Load(ctx context.Context) (Map, error) {
	m, err := p.load(ctx)
	if err != nil && ctx.Err() == nil && lost(err) {
		// The connections have died while nobody used them.
		p.pool.Reset()
		m, err = p.load(ctx)
	}
	return m, p.explain(ctx, err)
}

func (p *PostgresCatalog) load(ctx context.Context) (Map, error) {
	var m Map
	known := p.loaded.Load()
	if known == nil {
		known = &Map{Version: -1}
	}
	var format, shards int
	var names, dsns, nodes []string
	var states []State
	var epochs []int64
	var schemas []int
	// One statement has one snapshot. It looks at the rows only if the map has
	// another version than the one that was read last.
	err := p.pool.QueryRow(ctx, p.sql(`
		select c.format, c.shards, c.version, c.schema,
		       n.names, n.dsns, s.nodes, s.states, s.epochs, s.schemas
		  from shardgram.catalog c, lateral
		       (select array_agg(name order by added) as names,
		               array_agg(dsn order by added) as dsns from shardgram.node where c.version <> $1) n, lateral
		       (select array_agg(node order by number) as nodes,
		               array_agg(state order by number) as states,
		               array_agg(epoch order by number) as epochs,
		               array_agg(schema order by number) as schemas from shardgram.shard where c.version <> $1) s`), known.Version).
		Scan(&format, &shards, &m.Version, &m.Schema, &names, &dsns, &nodes, &states, &epochs, &schemas)
	switch {
	case err != nil:
		return Map{}, err
	case format > catalogFormat:
		return Map{}, ErrNewerCatalog
	case m.Version == known.Version:
		return *known, nil
	case len(nodes) != shards:
		return Map{}, fmt.Errorf("the catalog has rows of %d shards, not of %d", len(nodes), shards)
	}
	for i, name := range names {
		m.Nodes = append(m.Nodes, Node{Name: name, DSN: dsns[i]})
	}
	m.Shards = make([]Placement, shards)
	for i := range m.Shards {
		m.Shards[i] = Placement{Node: nodes[i], State: states[i], Epoch: epochs[i], Schema: schemas[i]}
	}
	p.loaded.Store(&m)
	return m, nil
}

// Wait returns when the map has a later version than the given one. It returns
// an error when the database cannot be reached.
func (p *PostgresCatalog) Wait(ctx context.Context, version int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.run, cancel)()
	err := p.wait(ctx, version)
	if err != nil && ctx.Err() == nil && lost(err) {
		// What was notified meanwhile is lost; a new connection looks.
		p.hints.Reset()
		err = p.wait(ctx, version)
	}
	switch {
	case err == nil:
		return nil
	case p.run.Err() != nil:
		return fmt.Errorf("shard: wait for the catalog: it was closed: %w", err)
	}
	return fmt.Errorf("shard: wait for the catalog: %w", p.explain(ctx, err))
}

func (p *PostgresCatalog) wait(ctx context.Context, version int64) error {
	conn, err := p.hints.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	// The connection listens by now, so a change is either seen here or heard of.
	var now int64
	if err := conn.QueryRow(ctx, p.sql("select version from shardgram.catalog")).Scan(&now); err != nil {
		return err
	}
	for now <= version {
		heard, err := conn.Conn().WaitForNotification(ctx)
		if err != nil {
			return err
		}
		now, _ = strconv.ParseInt(heard.Payload, 10, 64) // what others send is no hint
	}
	return nil
}

// Place replaces a shard's placement if its epoch is still the given one, else it
// returns [ErrConflict]. When the connection is lost in the commit, the error is
// [ErrAmbiguous]: the next Load tells.
func (p *PostgresCatalog) Place(ctx context.Context, shard int, epoch int64, to Placement) error {
	if !to.State.known() {
		return fmt.Errorf("shard: place shard %d in state %q, which this version does not know", shard, to.State)
	}
	err := p.change(ctx, func(tx pgx.Tx, now head) error {
		if shard < 0 || shard >= now.shards {
			return ErrNoShard
		}
		tag, err := tx.Exec(ctx, p.sql(`
			update shardgram.shard set node = $1, state = $2, epoch = epoch + 1, version = $3
			 where number = $4 and epoch = $5`), to.Node, string(to.State), now.version, shard, epoch)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "23503" { // foreign key
			return fmt.Errorf("node %q: %w", to.Node, ErrNoNode)
		}
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		var found int64
		err = tx.QueryRow(ctx, p.sql("select epoch from shardgram.shard where number = $1"), shard).Scan(&found)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: its epoch is %d, not %d", ErrConflict, found, epoch)
	})
	if err != nil {
		return fmt.Errorf("shard: place shard %d: %w", shard, err)
	}
	return nil
}

// Migrated records the schema version of some shards, in one statement.
func (p *PostgresCatalog) Migrated(ctx context.Context, shards []int, version int) error {
	if len(shards) == 0 {
		return nil
	}
	err := p.change(ctx, func(tx pgx.Tx, now head) error {
		for _, n := range shards {
			if n < 0 || n >= now.shards {
				return fmt.Errorf("shard %d: %w", n, ErrNoShard)
			}
		}
		tag, err := tx.Exec(ctx, p.sql(`
			update shardgram.shard set schema = $1, version = $2
			 where number = any($3) and schema <> $1`), version, now.version, shards)
		if err == nil && tag.RowsAffected() == 0 {
			return errUnchanged
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("shard: record schema versions: %w", err)
	}
	return nil
}

// head is the row of the table catalog, in a transaction that changes the map.
type head struct {
	version int64 // the new one
	shards  int
	schema  string
}

// errUnchanged is returned by a change that is none, so that the map keeps its
// version.
var errUnchanged = errors.New("nothing to change")

// change runs fn in a transaction that gives the map a new version. There is one
// such transaction at a time.
func (p *PostgresCatalog) change(ctx context.Context, fn func(pgx.Tx, head) error) error {
	err := p.inTx(ctx, func(tx pgx.Tx) error {
		now, err := p.raise(ctx, tx)
		if err != nil {
			return err
		}
		return fn(tx, now)
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return p.explain(ctx, err)
}

// raise takes the lock of the map and gives it a new version. Who waits is told
// when the transaction commits.
func (p *PostgresCatalog) raise(ctx context.Context, tx pgx.Tx) (now head, err error) {
	var format int
	err = tx.QueryRow(ctx, p.sql(`
		with raised as (update shardgram.catalog set version = version + 1 returning *)
		select version, shards, schema, format from raised, pg_notify($1, version::text)`), p.schema).
		Scan(&now.version, &now.shards, &now.schema, &format)
	if err == nil && format > catalogFormat {
		err = ErrNewerCatalog
	}
	return now, err
}

// inTx runs fn in a transaction and commits it. It never runs fn again.
func (p *PostgresCatalog) inTx(ctx context.Context, fn func(pgx.Tx) error) error {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	// Each statement is to see what was committed while it waited for a lock,
	// whatever the default is.
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	if err := fn(tx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err // the commit is not sent
	}
	err = tx.Commit(ctx)
	if err != nil && conn.Conn().IsClosed() {
		return fmt.Errorf("%w: %w", ErrAmbiguous, err)
	}
	return err
}

// explain finds out why tables or columns are missing.
func (p *PostgresCatalog) explain(ctx context.Context, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrNoCatalog // Init writes the row when it makes the table
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pg.Code != "42P01" && pg.Code != "42703" {
		return err
	}
	var format int
	switch again := p.pool.QueryRow(ctx, p.sql("select format from shardgram.catalog")).Scan(&format); {
	case again == nil && format > catalogFormat:
		return fmt.Errorf("%w: %w", ErrNewerCatalog, err)
	case again == nil:
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoCatalog, err)
}

// lost reports whether a connection was lost that had been there.
func lost(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == "57P01" // the server shuts down
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err)
}
