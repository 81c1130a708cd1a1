package shard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A statement is one that a connection knows the types of.
type statement struct {
	plan    plan
	name    string // "" if it is not prepared by name
	types   *pgconn.StatementDescription
	formats []int16 // of the columns
}

// statements are those that Gather has brought to a connection. They are apart
// from pgx's, so that they can be prepared and run in the schema of another shard
// than the one before, in one round trip.
//
// As with statements of single shards, the first ones get a plan each for every
// shard. The others are parsed and planned each time.
type statements struct {
	own    map[plan]*statement   // by schema and text
	shared map[string]*statement // by text
	named  int
	stale  []string // names that the server still has for nothing
}

const (
	statementsKey = "shardgram.gather"
	maxShared     = 64 // statements of which a connection keeps the types only
)

func statementsOf(conn *pgx.Conn) *statements {
	data := conn.PgConn().CustomData()
	known, ok := data[statementsKey].(*statements)
	if !ok {
		known = &statements{own: make(map[plan]*statement), shared: make(map[string]*statement)}
		data[statementsKey] = known
	}
	return known
}

// find returns the statement, and whether it is yet to be prepared.
func (k *statements) find(p plan, planCap int) (st *statement, fresh bool) {
	if st, ok := k.own[p]; ok {
		return st, false
	}
	if len(k.own) < planCap {
		k.named++
		st = &statement{plan: p, name: fmt.Sprintf("shardgram_%d", k.named)}
		k.own[p] = st
		return st, true
	}
	if st, ok := k.shared[p.sql]; ok {
		return st, false
	}
	if len(k.shared) >= maxShared {
		clear(k.shared)
	}
	st = &statement{plan: p}
	k.shared[p.sql] = st
	return st, true
}

func (k *statements) forget(st *statement) {
	if st.name == "" {
		delete(k.shared, st.plan.sql)
		return
	}
	delete(k.own, st.plan)
	if st.types != nil {
		k.stale = append(k.stale, st.name)
	}
}

// A call is a statement with the arguments of a shard.
type call struct {
	i    int
	args []any
	*statement
}

// A visit runs statements over one connection.
type visit struct {
	*gather
	lease *lease
	conn  *pgx.Conn
	pipe  *pgconn.Pipeline
	known *statements
}

// visit runs the statement on shards of one node in one round trip, or two if
// some of it must be prepared. It returns how many shards are done; an error is
// that of the next one.
func (g *gather) visit(l *lease, list []int) (done int, err error) {
	conn := l.conn.Conn()
	v := &visit{gather: g, lease: l, conn: conn, known: statementsOf(conn)}
	defer func() {
		if err != nil {
			g.cluster.stats[g.shards[list[done]].number].failed.Add(1)
		}
	}()
	// What stops one step at a shard lets the next steps go as far as that.
	calls, unprepared := v.prepare(list)
	calls, unsent := v.send(calls)
	done, err = v.receive(calls)
	return done, cmp.Or(err, unsent, unprepared)
}

// prepare finds a statement for each shard. It returns as many calls as there
// are before the first one that failed.
func (v *visit) prepare(list []int) (calls []call, failed error) {
	var fresh []int // places in calls
	for _, i := range list {
		s := v.shards[i]
		s.read = nil // so that it is a key of the map that Group has made
		sql, args := v.sql, v.args(s)
		if len(args) > 0 {
			if r, ok := args[0].(pgx.QueryRewriter); ok { // such as pgx.NamedArgs
				if sql, args, failed = r.RewriteQuery(v.lease.ctx, v.conn, sql, args[1:]); failed != nil {
					break
				}
			}
		}
		st, isFresh := v.known.find(plan{v.cluster.schemas[s.number], sql}, v.lease.place.node.plans)
		if isFresh {
			fresh = append(fresh, len(calls))
		}
		calls = append(calls, call{i, args, st})
	}
	if len(fresh) == 0 {
		return calls, failed
	}
	v.pipe = v.conn.PgConn().StartPipeline(v.lease.ctx)
	defer v.pipe.Close()
	for _, k := range fresh {
		v.setPath(calls[k].i)
		v.pipe.SendPrepare(calls[k].name, calls[k].plan.sql, nil)
	}
	for _, name := range v.known.stale {
		v.pipe.SendDeallocate(name)
	}
	err := v.pipe.Sync()
	for n, k := range fresh {
		var result any
		if err == nil {
			_, err = v.pipe.GetResults() // of the path
		}
		if err == nil {
			result, err = v.pipe.GetResults()
		}
		if err != nil {
			for _, k := range fresh[n:] {
				v.known.forget(calls[k].statement)
			}
			return calls[:k], err
		}
		st := calls[k].statement
		st.types = result.(*pgconn.StatementDescription)
		st.types.Name = st.name
		for _, f := range st.types.Fields {
			st.formats = append(st.formats, v.conn.TypeMap().FormatCodeForOID(f.DataTypeOID))
		}
	}
	v.known.stale = nil
	return calls, failed
}

// send sends what was prepared, in one transaction that cannot write. It
// returns as many calls as there are before the first one that failed.
func (v *visit) send(calls []call) (sent []call, failed error) {
	v.pipe = v.conn.PgConn().StartPipeline(v.lease.ctx)
	var b pgx.ExtendedQueryBuilder
	for n, c := range calls {
		if failed = b.Build(v.conn.TypeMap(), c.types, c.args); failed != nil {
			calls = calls[:n]
			break
		}
		if n == 0 {
			// With a begin, as a procedure could end a transaction without.
			v.pipe.SendQueryParams("begin read only", nil, nil, nil, nil)
		}
		v.setPath(c.i)
		if c.name != "" {
			v.pipe.SendQueryStatement(c.types, b.ParamValues, b.ParamFormats, c.formats)
		} else {
			v.pipe.SendQueryParams(c.plan.sql, b.ParamValues, nil, b.ParamFormats, c.formats)
		}
	}
	if len(calls) == 0 {
		return nil, failed
	}
	v.pipe.SendQueryParams("commit", nil, nil, nil, nil)
	if err := v.pipe.Sync(); err != nil {
		return nil, err
	}
	return calls, failed
}

// receive reads what was sent for, and returns how many calls are done.
func (v *visit) receive(calls []call) (done int, err error) {
	defer func() {
		closeErr := v.pipe.Close() // reads what is left
		if v.conn.PgConn().TxStatus() != 'I' && !v.conn.IsClosed() {
			_, _ = v.conn.Exec(v.lease.ctx, "rollback") // if that fails too, the pool drops the connection
		}
		if err != nil || closeErr != nil || len(calls) == 0 {
			v.lease.forget()
			return
		}
		v.lease.link.path = v.cluster.paths[v.shards[calls[len(calls)-1].i].number]
	}()
	if len(calls) > 0 {
		_, err = v.pipe.GetResults() // of the begin
	}
	begun := time.Now()
	for n, c := range calls {
		if err == nil {
			_, err = v.pipe.GetResults() // of the path
		}
		if err == nil {
			err = v.one(c)
		}
		stats, now := &v.cluster.stats[v.shards[c.i].number], time.Now()
		stats.calls.Add(1)
		stats.busy.Add(int64(now.Sub(begun)))
		begun = now
		if err != nil {
			if _, ok := errors.AsType[*pgconn.PgError](err); ok {
				v.known.forget(c.statement)
			}
			return n, err
		}
	}
	return len(calls), nil
}

// one reads the rows of one shard.
func (v *visit) one(c call) (err error) {
	ctx := v.lease.ctx
	var tag pgconn.CommandTag
	if tracer := v.cluster.cfg.Tracer; tracer != nil {
		ctx = context.WithValue(ctx, shardKey{}, v.shards[c.i])
		ctx = tracer.TraceQueryStart(ctx, v.conn, pgx.TraceQueryStartData{SQL: c.plan.sql, Args: c.args})
		defer func() { tracer.TraceQueryEnd(ctx, v.conn, pgx.TraceQueryEndData{CommandTag: tag, Err: err}) }()
	}
	result, err := v.pipe.GetResults()
	if err != nil {
		return err
	}
	reader := result.(*pgconn.ResultReader)
	rows := pgx.RowsFromResultReader(v.conn.TypeMap(), reader)
	err = v.read(ctx, c.i, rows)
	rows.Close()
	var readErr error
	if tag, readErr = reader.Close(); readErr != nil {
		return readErr // what scanning says then is a consequence
	}
	v.lease.look(tag)
	return err
}

// setPath makes what follows run in a shard's schema. To a server it is a "set"
// for the session, which takes half the time of set_config; in a transaction
// that does not say begin, a "set local" would draw a warning.
func (v *visit) setPath(i int) {
	path := v.cluster.paths[v.shards[i].number]
	if v.cluster.cfg.Pooler {
		v.pipe.SendQueryParams(localPathSQL, [][]byte{[]byte(path)}, []uint32{25}, nil, nil)
		return
	}
	v.pipe.SendQueryParams("set search_path to "+path, nil, nil, nil, nil)
}
