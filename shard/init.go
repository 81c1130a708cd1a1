package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrMismatch is returned by Init for a catalog that has another number of shards
// or another [Config].Schema than Init was given. Neither can be changed.
var ErrMismatch = errors.New("the catalog was made otherwise")

// InitConfig says what Init makes. Shards and Nodes have to be given.
type InitConfig struct {
	// Shards is their number, for ever: a power of two up to [MaxShards]. More
	// than a node will ever need costs little; too few cannot be mended.
	Shards int

	// Nodes are those that the shards are dealt round to: shard i lives on
	// Nodes[i % len(Nodes)].
	Nodes []Node

	// Config is how the nodes are reached, how the schemas are called, what layout
	// the IDs have, and how many shards of a node are worked on at a time. Default:
	// as with Open.
	Config Config

	// Progress is called after each shard, in one call at a time. Default: none.
	Progress func(Progress)
}

// Init makes the tables of a catalog, deals the shards round to the nodes, and
// creates their schemas with the functions of [idgen.SQL]. Migrate comes next.
//
// Init may run again, and in several programs at once: it makes what is missing
// and leaves the rest as it is. So it finishes what a failure, or the end of ctx,
// has left undone. Shards that failed, as those of a node that is down, are in
// the [Errors].
//
// To run it again with other nodes changes the list of nodes. One that the catalog
// does not have is added, without shards. One whose DSN is another is changed,
// which is how a host is replaced; the new one must be up, and must have the
// schemas of the node's shards if they were migrated before. Nodes that are not
// given stay. The clusters that are open learn of it.
//
// Nothing is made when two nodes turn out to be one database, or one is a standby.
// A node that cannot be asked is looked at the next time.
func Init(ctx context.Context, cat *PostgresCatalog, cfg InitConfig) error {
	if cat == nil {
		return errors.New("shard: init: the catalog is nil")
	}
	known, err := cat.Load(ctx)
	if err != nil && !errors.Is(err, ErrNoCatalog) {
		return fmt.Errorf("shard: init: load the catalog: %w", err)
	}
	if cfg, err = cfg.check(known); err != nil {
		return err
	}
	silent, err := cfg.ask(ctx, known)
	if err != nil {
		return err
	}
	if err := cat.install(ctx, cfg); err != nil {
		return fmt.Errorf("shard: init: %w", err)
	}
	c, err := Open(ctx, cat, cfg.Config)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.prepare(ctx, silent, cfg.Progress)
}

// check returns cfg with its defaults. known is what the catalog has, if any.
func (cfg InitConfig) check(known Map) (InitConfig, error) {
	if cfg.Config.Schema == "" {
		cfg.Config.Schema = known.Schema
	}
	checked, err := cfg.Config.withDefaults(Map{})
	if err != nil {
		return cfg, err
	}
	cfg.Config.Schema = checked.Schema
	most := min(MaxShards, checked.Layout.MaxShard()+1)
	if n := cfg.Shards; n <= 0 || n&(n-1) != 0 || n > most {
		return cfg, fmt.Errorf("shard: InitConfig.Shards is %d: want a power of two up to %d", n, most)
	}
	if len(cfg.Nodes) == 0 {
		return cfg, errors.New("shard: InitConfig.Nodes is empty")
	}
	if len(known.Shards) > 0 {
		err = cfg.compare(len(known.Shards), known.Schema)
	}
	return cfg, err
}

// compare returns ErrMismatch if the catalog was made with other numbers.
func (cfg InitConfig) compare(shards int, schema string) error {
	switch {
	case shards != cfg.Shards:
		return fmt.Errorf("shard: %w: with %d shards, not %d", ErrMismatch, shards, cfg.Shards)
	case schema != cfg.Config.Schema:
		return fmt.Errorf("shard: %w: with schema %q, not %q", ErrMismatch, schema, cfg.Config.Schema)
	}
	return nil
}

// database is what tells one from another. A replica that was promoted has the
// identifier of its first primary, so the time of start is part of it.
type database struct {
	system  string
	oid     uint32
	started time.Time
}

// ask looks at the databases behind the nodes, those that the catalog has already
// too. It returns the nodes that did not answer.
func (cfg InitConfig) ask(ctx context.Context, known Map) (silent map[string]error, err error) {
	nodes := slices.Clone(cfg.Nodes)
	migrated := make(map[string][]string) // schemas that a node must have, as its DSN is new
	for _, old := range known.Nodes {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.Name == old.Name })
		if i < 0 {
			nodes = append(nodes, old)
			continue
		}
		for s, p := range known.Shards {
			if nodes[i].DSN != old.DSN && p.Node == old.Name && p.Schema > 0 {
				migrated[old.Name] = append(migrated[old.Name], schemaName(cfg.Config.Schema, s))
			}
		}
	}
	// It also checks names and DSNs.
	c, err := Open(ctx, Static(1, nodes...), cfg.Config)
	if err != nil {
		return nil, err
	}
	defer c.Close()

	type answer struct {
		database
		standby bool
		lacks   int
		err     error
	}
	answers := make([]answer, len(nodes))
	var wg sync.WaitGroup
	for i, n := range c.view.Load().nodes {
		wg.Go(func() {
			a := &answers[i]
			a.err = n.pool.QueryRow(ctx, `
				select (select system_identifier::text from pg_catalog.pg_control_system()),
				       (select oid from pg_catalog.pg_database where datname = current_database()),
				       pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_is_in_recovery(),
				       (select count(*) from unnest($1::text[]) as s where pg_catalog.to_regnamespace(s) is null)`,
				migrated[n.Name]).Scan(&a.system, &a.oid, &a.started, &a.standby, &a.lacks)
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("shard: init: ask the nodes: %w", err)
	}
	silent = make(map[string]error)
	first := make(map[database]string)
	for i, a := range answers {
		name := nodes[i].Name
		switch {
		case a.err != nil && migrated[name] != nil:
			return nil, fmt.Errorf("shard: init: node %s: its new DSN: %w", name, a.err)
		case a.err != nil:
			silent[name] = a.err
		case a.standby:
			return nil, fmt.Errorf("shard: init: node %s is a standby: it takes no writes", name)
		case first[a.database] != "":
			return nil, fmt.Errorf("shard: init: nodes %s and %s are the same database", first[a.database], name)
		case a.lacks > 0:
			return nil, fmt.Errorf("shard: init: node %s: its new DSN leads to a database that lacks %d of its %d schemas", name, a.lacks, len(migrated[name]))
		default:
			first[a.database] = name
		}
	}
	return silent, nil
}

// install brings the catalog's tables to what cfg says, in one transaction.
func (p *PostgresCatalog) install(ctx context.Context, cfg InitConfig) error {
	err := p.inTx(ctx, func(tx pgx.Tx) error {
		// Of two programs at once the second is to find what the first has made.
		if _, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended($1, 0))", p.schema); err != nil {
			return err
		}
		var schema, tables bool
		err := tx.QueryRow(ctx, `select exists (select from pg_namespace where nspname = $1),
			exists (select from pg_tables where schemaname = $1 and tablename = 'catalog')`, p.schema).Scan(&schema, &tables)
		if err != nil {
			return err
		}
		if !schema {
			if _, err := tx.Exec(ctx, "create schema "+p.schema); err != nil {
				return err
			}
		}
		if !tables {
			if _, err := tx.Exec(ctx, p.sql(catalogSQL), pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, p.sql("insert into shardgram.catalog (format, shards, schema, version) values ($1, $2, $3, 0)"),
				catalogFormat, cfg.Shards, cfg.Config.Schema); err != nil {
				return err
			}
		}
		now, err := p.raise(ctx, tx)
		if err != nil {
			return err
		}
		if err := cfg.compare(now.shards, now.schema); err != nil {
			return err
		}
		changed := !tables
		var names []string
		for _, n := range cfg.Nodes {
			// An upsert alone would take a number of the order each time.
			tag, err := tx.Exec(ctx, p.sql("update shardgram.node set dsn = $2 where name = $1 and dsn <> $2"), n.Name, n.DSN)
			if err != nil {
				return err
			}
			changed = changed || tag.RowsAffected() > 0
			tag, err = tx.Exec(ctx, p.sql(`insert into shardgram.node (name, dsn) select $1::text, $2::text
				where not exists (select from shardgram.node where name = $1)`), n.Name, n.DSN)
			if err != nil {
				return err
			}
			changed = changed || tag.RowsAffected() > 0
			names = append(names, n.Name)
		}
		if !tables {
			_, err = tx.Exec(ctx, p.sql(`
				insert into shardgram.shard (number, node, epoch, state, schema, version)
				select i, ($1::text[])[i % $2 + 1], 1, 'serving', 0, $3 from generate_series(0, $4 - 1) as i`),
				names, len(names), now.version, cfg.Shards)
		}
		if err == nil && !changed {
			err = errUnchanged
		}
		return err
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// prepare creates the schemas that are missing, with next_id(). Nodes that are
// silent are left out: their shards fail with that error.
func (c *Cluster) prepare(ctx context.Context, silent map[string]error, tell func(Progress)) error {
	err := c.each(ctx, c.Shards(), tell, func(ctx context.Context, s Shard) error {
		if err := silent[s.Node()]; err != nil {
			return err
		}
		// A look first: most shards have it when Init goes on.
		has, err := s.look(ctx, s.place())
		if err != nil {
			return err
		}
		if next, err := s.nextID(has); next == nil {
			return err
		}
		return s.InTx(ctx, func(tx pgx.Tx) error { return s.migrate(ctx, tx, nil) })
	})
	var idle []error // errors of nodes without shards
	for _, n := range c.Map().Nodes {
		has := slices.ContainsFunc(c.Map().Shards, func(p Placement) bool { return p.Node == n.Name })
		if silent[n.Name] != nil && !has {
			idle = append(idle, fmt.Errorf("shard: init: node %s: %w", n.Name, silent[n.Name]))
		}
	}
	if idle == nil {
		return err
	}
	return errors.Join(append([]error{err}, idle...)...)
}
