package pglease

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/shardgram/shardgram/idgen"
)

// A lease is a number that this process claimed.
type lease struct {
	store   *Store
	shard   int
	claimed idgen.ID // what Mark returns

	// known is what is known to be stored. While the outcome of an Extend is
	// unknown, tried is what it wrote and may be stored instead; else it is the
	// same.
	known, tried version
}

// A version is what this holder has written into its row. The token is new each
// time, or two clones that go on to the same mark could take the other's for
// their own.
type version struct {
	token string
	mark  idgen.ID
}

func (l *lease) Shard() int { return l.shard }

func (l *lease) Mark() idgen.ID { return l.claimed }

func (l *lease) Extend(ctx context.Context, mark idgen.ID) error {
	var err error
	if l.tried != l.known {
		// The outcome of the last one comes first, so that there is never more
		// than one version to accept beside the known one.
		err = l.update(ctx, l.tried)
	}
	if err == nil {
		err = l.update(ctx, version{token: rand.Text(), mark: max(mark, l.known.mark)})
	}
	if err != nil {
		return fmt.Errorf("pglease: extend shard %d of %s: %w", l.shard, l.store.name, l.store.explain(err))
	}
	return nil
}

// update stores a version in place of the known one, or of the one that may be
// there instead. A statement that was given up and comes late finds another
// version than it expects.
func (l *lease) update(ctx context.Context, v version) error {
	known, tried := l.known, l.tried
	l.tried = v
	tag, err := l.store.db.Exec(ctx, l.store.sql.extend, pgx.QueryExecModeExec, l.store.name, l.shard,
		known.token, int64(known.mark), l.store.ttl, tried.token, int64(tried.mark), v.token, int64(v.mark))
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return idgen.ErrLeaseLost
	}
	l.known = v
	return nil
}

// Release does nothing to a number that is lost.
func (l *lease) Release(ctx context.Context, mark idgen.ID) error {
	_, err := l.store.db.Exec(ctx, l.store.sql.release, pgx.QueryExecModeExec, l.store.name, l.shard,
		l.known.token, int64(l.known.mark), l.tried.token, int64(l.tried.mark), int64(mark))
	if err != nil {
		return fmt.Errorf("pglease: release shard %d of %s: %w", l.shard, l.store.name, l.store.explain(err))
	}
	return nil
}
