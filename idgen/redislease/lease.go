package redislease

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shardgram/shardgram/idgen"
)

// A record is what Redis holds for a number.
type record struct {
	mark   idgen.ID
	token  string
	layout string
}

// String is the record as it is stored. The layout comes last, as it has blanks.
func (r record) String() string {
	return r.mark.String() + " " + r.token + " " + r.layout
}

func parseRecord(s string) (record, error) {
	parts := strings.SplitN(s, " ", 3)
	if len(parts) == 3 {
		if mark, err := strconv.ParseInt(parts[0], 10, 64); err == nil && mark >= 0 {
			return record{idgen.ID(mark), parts[1], parts[2]}, nil
		}
	}
	return record{}, errors.New("the record cannot be read")
}

// lease is an [idgen.Lease].
type lease struct {
	store *Store
	shard int
	mark  idgen.ID // when it was claimed

	// stored is what Redis holds, as far as that is known; pending what was
	// sent then without a known outcome, if it has a token.
	stored, pending record
}

// Shard returns the number.
func (l *lease) Shard() int { return l.shard }

// Mark returns what the mark was when the number was claimed.
func (l *lease) Mark() idgen.ID { return l.mark }

// Extend stores a mark, or the one before if that is higher.
func (l *lease) Extend(ctx context.Context, mark idgen.ID) error {
	if err := l.extend(ctx, mark); err != nil {
		return l.wrap(ctx, "extend", err)
	}
	return nil
}

func (l *lease) extend(ctx context.Context, mark idgen.ID) error {
	if err := l.settle(ctx); err != nil {
		return err
	}
	// Also when settle has stored as much: two clones may have sent the same
	// record, and only one of them may go on from there.
	return l.write(ctx, max(mark, l.stored.mark), l.store.cfg.TTL, l.store.cfg.Replicas)
}

// Release gives the number back, or changes nothing if it is lost. It
// waits for no replica: if the release is forgotten, the number stays held for a
// while, with a higher mark.
func (l *lease) Release(ctx context.Context, mark idgen.ID) error {
	if err := l.release(ctx, mark); err != nil && !errors.Is(err, idgen.ErrLeaseLost) {
		return l.wrap(ctx, "release", err)
	}
	return nil
}

func (l *lease) release(ctx context.Context, mark idgen.ID) error {
	if err := l.settle(ctx); err != nil {
		return err
	}
	return l.write(ctx, mark, 0, 0)
}

// settle finds out about a write whose outcome is not known by repeating it.
// Without that, each error would add one more record to those that the next
// write has to expect. Replicas are the matter of that one.
func (l *lease) settle(ctx context.Context) error {
	if err := ended(ctx); err != nil || l.pending.token == "" {
		return err
	}
	return l.send(ctx, l.store.cfg.TTL, 0)
}

func (l *lease) write(ctx context.Context, mark idgen.ID, ttl time.Duration, replicas int) error {
	l.pending = record{mark: mark, token: rand.Text(), layout: l.stored.layout}
	return l.send(ctx, ttl, replicas)
}

func (l *lease) send(ctx context.Context, ttl time.Duration, replicas int) error {
	if err := l.store.swap(ctx, l.shard, l.stored, l.pending, ttl, replicas); err != nil {
		return err
	}
	l.stored, l.pending = l.pending, record{}
	return nil
}

func (l *lease) wrap(ctx context.Context, op string, err error) error {
	return fmt.Errorf("redislease: %s %s[%d]: %w", op, l.store.cfg.Prefix, l.shard, because(ctx, err))
}
