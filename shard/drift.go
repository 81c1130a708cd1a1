package shard

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// A Difference is something in which a shard's structure is not that of shard 0.
type Difference struct {
	Shard  int
	Node   string
	Object string // such as "column note.body"; "schema" when there is none

	// Want is the object's definition in shard 0, Have that in this shard; ""
	// where it does not exist. $schema stands for the shard's own schema.
	Want, Have string
}

// String returns a line; of a longer definition it shows the first line that
// differs.
func (d Difference) String() string {
	at := fmt.Sprintf("shard %d on node %s: %s", d.Shard, d.Node, d.Object)
	switch {
	case d.Have == "":
		return at + " is missing"
	case d.Want == "":
		return at + " is not in shard 0"
	}
	want, have := strings.Split(d.Want, "\n"), strings.Split(d.Have, "\n")
	i := 0
	for i < min(len(want), len(have))-1 && want[i] == have[i] {
		i++
	}
	return fmt.Sprintf("%s: want %q, have %q", at, want[i], have[i])
}

// Drift compares the structure of every shard with that of shard 0 and returns
// the differences by shard and object: tables, columns and their order,
// constraints, indexes (with those that are not valid), sequences, views,
// triggers, rules, policies, functions, types, and what Migrate has recorded. It
// does not look at rows, comments, owners, privileges and settings of storage, nor
// at what has a name that begins with shardgram_. It only reads, and a Migrate at
// the same time can make it see differences.
//
// Each node tells the hash of 64 shards in two queries; definitions are read only
// of shards that differ, once for all that differ in the same way. Shards that
// could not be looked at are in the [Errors]; without shard 0 there is nothing to
// compare with.
func (c *Cluster) Drift(ctx context.Context) ([]Difference, error) {
	if err := c.Refresh(ctx); err != nil {
		return nil, err
	}
	prints, err := c.fingerprints(ctx)
	if err != nil && prints[0].failed {
		return nil, err
	}
	if !prints[0].there {
		return nil, c.Number(0).wrap(c.Number(0).place(), ErrNoSchema)
	}
	changed, changedErr := c.changedObjects(ctx, prints)
	if changedErr != nil && err == nil {
		err = changedErr
	}
	var all []Difference
	for n, f := range prints {
		node := c.Number(n).Node()
		switch {
		case f.failed:
			continue
		case !f.there:
			all = append(all, Difference{Shard: n, Node: node, Object: "schema", Want: "exists"})
			continue
		}
		for _, d := range changed[f.hash] {
			all = append(all, Difference{n, node, d.Object, d.Want, d.Have})
		}
		for _, d := range compare(prints[0].versions, f.versions) {
			all = append(all, Difference{n, node, d.Object, d.Want, d.Have})
		}
	}
	return all, err
}

// driftChunk is how many shards are hashed in one query: it bounds the memory
// and the locks that one takes.
const driftChunk = 64

//go:embed drift.sql
var driftSQL string

const hashSQL = `with described as (%s)
select given.schema, n.oid is not null,
  coalesce((select md5(string_agg(concat_ws(E'\x1f', d.object, d.part_of, d.text), E'\x1e' order by d.object collate "C", d.text collate "C"))
    from described d where d.schema = given.schema), ''),
  (select count(*) = 3 from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = n.oid and c.relname = 'schema_version' and a.attname in ('version', 'name', 'sha256'))
from unnest($1::text[]) with ordinality as given (schema, place)
left join pg_namespace n on n.nspname = given.schema
order by place`

// fingerprint is what of a shard's structure fits into memory for all of them.
type fingerprint struct {
	failed, there bool
	hash          string
	versioned     bool    // it has a table schema_version to read
	versions      objects // shared by the shards that have the same
}

// objects are definitions by the object's name.
type objects map[string]definition

type definition struct{ partOf, text string }

func (c *Cluster) fingerprints(ctx context.Context) ([]fingerprint, error) {
	prints := make([]fingerprint, len(c.schemas))
	chunks := make(map[Shard][]Shard) // by their first shard
	leader := make(map[string]Shard)  // of the chunk that is being filled, by node
	var leaders []Shard
	for _, s := range c.Shards() {
		l, ok := leader[s.Node()]
		if !ok || len(chunks[l]) == driftChunk {
			l = s
			leader[s.Node()] = l
			leaders = append(leaders, l)
		}
		chunks[l] = append(chunks[l], s)
	}
	var mu sync.Mutex
	same := make(map[string]objects) // by their text; fmt sorts maps
	err := c.Each(ctx, leaders, func(ctx context.Context, l Shard) error {
		err := l.inspect(ctx, func(tx pgx.Tx) error { return fingerprintAll(ctx, tx, chunks[l], prints) })
		mu.Lock()
		defer mu.Unlock()
		for _, s := range chunks[l] {
			versions := &prints[s.number].versions
			text := fmt.Sprint(*versions)
			if same[text] == nil {
				same[text] = *versions
			}
			*versions = same[text]
		}
		return err
	})
	errs := make([]error, len(prints))
	if failed, ok := err.(Errors); ok {
		for _, e := range failed {
			for _, s := range chunks[c.Number(e.Shard)] {
				prints[s.number] = fingerprint{failed: true}
				errs[s.number] = &Error{Shard: s.number, Node: e.Node, Err: e.Err}
			}
		}
	}
	return prints, join(errs)
}

func fingerprintAll(ctx context.Context, tx pgx.Tx, chunk []Shard, prints []fingerprint) error {
	rows, err := tx.Query(ctx, fmt.Sprintf(hashSQL, driftSQL), describe(chunk)...)
	if err != nil {
		return err
	}
	var union []string
	for i := 0; rows.Next(); i++ {
		s := chunk[i]
		f := fingerprint{versions: make(objects)}
		var schema string
		if err := rows.Scan(&schema, &f.there, &f.hash, &f.versioned); err != nil {
			rows.Close()
			return err
		}
		prints[s.number] = f
		if f.versioned {
			union = append(union, fmt.Sprintf("select %d, version::text, name::text, sha256::text from %s.schema_version", s.number, schema))
		}
	}
	if err := rows.Err(); err != nil || len(union) == 0 {
		return err
	}
	if rows, err = tx.Query(ctx, strings.Join(union, " union all "), pgx.QueryExecModeSimpleProtocol); err != nil {
		return err
	}
	var number int
	var version, name, sum string
	_, err = pgx.ForEachRow(rows, []any{&number, &version, &name, &sum}, func() error {
		text := name + " " + sum
		if version == "0" {
			text = name // the text has the number of the shard in it
		}
		prints[number].versions["schema_version "+version] = definition{text: text}
		return nil
	})
	return err
}

// describe returns the arguments of drift.sql.
func describe(shards []Shard) []any {
	var schemas []string
	var placed []int64
	for _, s := range shards {
		schemas = append(schemas, s.Schema())
		placed = append(placed, int64(s.number)<<s.cluster.cfg.Layout.SequenceBits)
	}
	return []any{pgx.QueryExecModeExec, schemas, placed}
}

// changedObjects returns the differences of each hash that is not shard 0's, as
// the first shard that has it shows them.
func (c *Cluster) changedObjects(ctx context.Context, prints []fingerprint) (map[string][]Difference, error) {
	seen := map[string]bool{prints[0].hash: true}
	var examples []Shard
	for n, f := range prints {
		if f.there && !seen[f.hash] {
			seen[f.hash] = true
			examples = append(examples, c.Number(n))
		}
	}
	if examples == nil {
		return nil, nil
	}
	want, err := c.Number(0).objects(ctx)
	if err != nil {
		return nil, err
	}
	found := make([][]Difference, len(prints))
	err = c.Each(ctx, examples, func(ctx context.Context, s Shard) error {
		have, err := s.objects(ctx)
		found[s.number] = compare(want, have)
		return err
	})
	changed := make(map[string][]Difference)
	for _, s := range examples {
		changed[prints[s.number].hash] = found[s.number]
	}
	return changed, err
}

func (s Shard) objects(ctx context.Context) (all objects, err error) {
	err = s.inspect(ctx, func(tx pgx.Tx) error {
		all = make(objects)
		rows, err := tx.Query(ctx, driftSQL, describe([]Shard{s})...)
		if err != nil {
			return err
		}
		var schema, name string
		var d definition
		_, err = pgx.ForEachRow(rows, []any{&schema, &name, &d.partOf, &d.text}, func() error {
			all[name] = d
			return nil
		})
		return err
	})
	return all, err
}

// inspect runs fn in a transaction in which definitions read the same on every
// node.
func (s Shard) inspect(ctx context.Context, fn func(pgx.Tx) error) error {
	opts := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	p, err := s.retry(ctx, func(p place) error {
		return s.inTx(ctx, p, opts, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `set local search_path to ''; set local quote_all_identifiers to off; set local timezone to 'UTC';
				set local datestyle to 'ISO'; set local intervalstyle to 'postgres'; set local bytea_output to 'hex'; set local extra_float_digits to 1`,
				pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				return err
			}
			return fn(tx)
		})
	})
	return s.wrap(p, err)
}

// compare returns in what two shards differ, without the parts of tables that
// one of them does not have at all.
func compare(want, have objects) (all []Difference) {
	names := slices.Collect(maps.Keys(want))
	for name := range have {
		if _, ok := want[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		w, wanted := want[name]
		h, had := have[name]
		switch {
		case !wanted && lacks(want, h.partOf), !had && lacks(have, w.partOf):
			continue
		case wanted && had && (w.text == h.text || strings.HasPrefix(name, "order of columns of ") && sameOrder(w.text, h.text)):
			continue
		}
		all = append(all, Difference{Object: name, Want: w.text, Have: h.text})
	}
	return all
}

func lacks(all objects, whole string) bool {
	_, ok := all[whole]
	return whole != "" && !ok
}

// sameOrder reports whether the columns that both tables have are in the same
// order: one that is missing is told of by itself.
func sameOrder(want, have string) bool {
	w, h := strings.Split(want, ", "), strings.Split(have, ", ")
	w = slices.DeleteFunc(w, func(name string) bool { return !slices.Contains(h, name) })
	h = slices.DeleteFunc(h, func(name string) bool { return !slices.Contains(w, name) })
	return slices.Equal(w, h)
}
