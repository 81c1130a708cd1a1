package idgen

import (
	_ "embed"
	"fmt"
	"strings"
	"text/template"
	"unicode"
)

//go:embed next_id.sql
var nextID string

var nextIDTemplate = template.Must(template.New("next_id.sql").Parse(nextID))

// SQLConfig says where next_id() goes and what its IDs carry.
type SQLConfig struct {
	// Schema is the PostgreSQL schema, which must exist. It has to be given.
	Schema string

	// Shard is the number that the IDs carry.
	Shard int

	// Layout is the division of the 64 bits. It needs 20 or more bits for shard
	// and sequence together, and 6 for the shard. Default: [Default].
	Layout Layout
}

// SQL returns a script that installs, in one schema and without an extension:
//
//	next_id() bigint                    a new ID
//	next_ids(n int) setof bigint        n new IDs, increasing
//	id_time(id bigint) timestamptz      what an ID tells; also
//	id_shard(id) int, id_sequence(id) int
//	first_id(at timestamptz) bigint     the smallest ID of a millisecond
//	last_id(at timestamptz) bigint      and the largest
//	id_floor(at_least bigint) bigint    makes all later IDs larger than that
//
// and the sequence id_state, which they rest on. A column takes its IDs with
// "default next_id()". The script may run again; it is refused by a schema that
// has another shard or layout. It runs by psql, or by Exec of pgx or database/sql
// without arguments; runs at the same time want a transaction each (psql -1).
// Outside the schema's search_path the functions are called as s42.next_id(). After
// the schema was renamed, run the script of the new name.
//
// # Guarantees
//
// The IDs of a schema never repeat, and each is larger than those a session got
// before, whatever the clock does: many sessions, bulk inserts, cancelled
// statements, transactions and savepoints that roll back, a server that crashes
// or a replica that is promoted. No call waits for another's transaction. There are at most 1,024
// IDs per millisecond of the server's clock; a call beyond them waits for the
// next one. When the clock is set back they go on above the last one.
//
// The published function of Instagram, which takes the sequence modulo 1,024 and
// reads the clock after it, repeats IDs when a session is held up between the
// two. Here the sequence holds the time too.
//
// # Non-guarantees
//
// A crash forgets what was not committed, or with synchronous_commit = off not
// yet written: such an ID comes again if the clock has been set back too. So does
// one that a replica had not received when it was promoted. Where clocks are that
// bad, and when a shard moves to another server, ask the old server for
// id_floor(), and give the answer to id_floor(…) on the new one. Give it nothing
// but IDs of this layout: a floor in 2060 cannot be undone. Like any sequence
// next_id() cannot be called on a standby or in a read-only transaction.
//
// # Cost
//
// A call reads and counts one sequence and the clock, which takes about half as
// long as the published function. The first call in a millisecond also takes a
// lock, within a subtransaction, and writes two WAL records, which takes longer
// than that function (BenchmarkNextID in the module bench). A role needs usage of
// the schema and update of the sequence id_state.
func SQL(cfg SQLConfig) (string, error) {
	l := cfg.Layout
	if l == (Layout{}) {
		l = Default
	}
	if err := l.Validate(); err != nil {
		return "", err
	}
	below := l.ShardBits + l.SequenceBits
	if l.ShardBits < 6 || below < 20 {
		return "", fmt.Errorf("idgen: layout %v: SQL wants 6 or more bits for the shard, and 20 with the sequence", l)
	}
	if cfg.Shard < 0 || cfg.Shard > l.MaxShard() {
		return "", fmt.Errorf("idgen: SQLConfig.Shard is %d: want 0 to %d", cfg.Shard, l.MaxShard())
	}
	if cfg.Schema == "" || len(cfg.Schema) > 63 || strings.Contains(cfg.Schema, "$idgen$") || strings.ContainsFunc(cfg.Schema, unicode.IsControl) {
		return "", fmt.Errorf("idgen: SQLConfig.Schema is %.80q: want the name of a schema", cfg.Schema)
	}
	schema := quote(cfg.Schema, '"')
	var b strings.Builder
	err := nextIDTemplate.Execute(&b, map[string]any{
		"Layout":       l,
		"Shard":        cfg.Shard,
		"ShardPlaced":  cfg.Shard << l.SequenceBits,
		"ShardMask":    l.MaxShard() << l.SequenceBits,
		"MaxShard":     l.MaxShard(),
		"MaxSequence":  l.maxSequence(),
		"SequenceBits": l.SequenceBits,
		"Below":        below,
		"BelowMask":    1<<below - 1,
		"Half":         1 << (below - 1),
		"Start":        1 << l.SequenceBits,
		"Span":         l.span(),
		"MaxValue":     (l.span()-1)<<below + int64(l.maxSequence()) - 1, // below MaxID
		"MaxID":        int64(MaxID),
		"Epoch":        l.Epoch.UnixMilli(),
		"Now":          fmt.Sprintf("floor(date_part('epoch'::text, clock_timestamp()) * 1000::float8)::bigint - %d", l.Epoch.UnixMilli()),
		"Class":        0x69646765, // "idge": of the advisory locks
		"Schema":       schema,
		"SchemaText":   quote(cfg.Schema, '\''),
		"State":        quote(schema+".id_state", '\''),
		"Settings":     quote(fmt.Sprintf("idgen %v, shard %d", l, cfg.Shard), '\''),
	})
	if err != nil {
		panic("bug: idgen: next_id.sql: " + err.Error())
	}
	return b.String(), nil
}

// quote doubles the quotes in a name or text, as SQL wants it.
func quote(s string, mark rune) string {
	q := string(mark)
	return q + strings.ReplaceAll(s, q, q+q) + q
}
