package shard

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
)

// tracer stands between pgx and the program's tracer. It adds the shard to the
// context, for what is done in a transaction too, where the context comes from the
// program; and it takes off what this package adds to SQL, so that a statement has
// one text on all shards. Statements of no shard are this package's own, as those
// that ask hosts how they do, and are kept from it.
type tracer struct {
	*multitracer.Tracer // passes on whatever the program's tracer wants to know
}

// tracing returns a program's tracer for pgx.
func tracing(of pgx.QueryTracer) pgx.QueryTracer {
	if of == nil {
		return nil
	}
	return tracer{multitracer.New(of)}
}

func (t tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	ctx = located(ctx, conn)
	s, ok := FromContext(ctx)
	if !ok {
		return ctx
	}
	data.SQL = s.plain(data.SQL)
	return t.Tracer.TraceQueryStart(ctx, conn, data)
}

func (t tracer) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryEndData) {
	if _, ok := FromContext(ctx); ok {
		t.Tracer.TraceQueryEnd(ctx, conn, data)
	}
}

func (t tracer) TracePrepareStart(ctx context.Context, conn *pgx.Conn, data pgx.TracePrepareStartData) context.Context {
	ctx = located(ctx, conn)
	s, ok := FromContext(ctx)
	if !ok {
		return ctx
	}
	data.SQL = s.plain(data.SQL)
	return t.Tracer.TracePrepareStart(ctx, conn, data)
}

func (t tracer) TracePrepareEnd(ctx context.Context, conn *pgx.Conn, data pgx.TracePrepareEndData) {
	if _, ok := FromContext(ctx); ok {
		t.Tracer.TracePrepareEnd(ctx, conn, data)
	}
}

func (t tracer) TraceBatchStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if all := data.Batch.QueuedQueries; len(all) > 0 && all[0].SQL == localPathSQL {
		own := *data.Batch
		own.QueuedQueries = all[1:]
		data.Batch = &own
	}
	return t.Tracer.TraceBatchStart(located(ctx, conn), conn, data)
}

func (t tracer) TraceBatchQuery(ctx context.Context, conn *pgx.Conn, data pgx.TraceBatchQueryData) {
	if data.SQL != localPathSQL {
		t.Tracer.TraceBatchQuery(ctx, conn, data)
	}
}

func (t tracer) TraceCopyFromStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceCopyFromStartData) context.Context {
	return t.Tracer.TraceCopyFromStart(located(ctx, conn), conn, data)
}

type shardKey struct{}

// located adds the shard that holds a connection.
func located(ctx context.Context, conn *pgx.Conn) context.Context {
	l, ok := conn.PgConn().CustomData()[linkKey].(*link)
	if !ok || l.shard.cluster == nil {
		return ctx
	}
	return context.WithValue(ctx, shardKey{}, l.shard)
}

// plain returns a statement as the program wrote it.
func (s Shard) plain(sql string) string {
	c := s.cluster
	return strings.TrimSuffix(strings.TrimSuffix(sql, planMark(c.schemas[s.number])), localPath(c.paths[s.number]))
}

// FromContext returns the shard of the statement that a tracer is told of.
func FromContext(ctx context.Context) (Shard, bool) {
	s, ok := ctx.Value(shardKey{}).(Shard)
	return s, ok
}
