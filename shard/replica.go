package shard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Source is the kind of host to read from.
type Source int

// The sources of a [ReadPolicy].
const (
	Replica Source = iota // any replica; the primary if none is near enough
	Nearest               // the host that answers first, primary or replica
	Primary               // the primary, as without a policy
)

// A ReadPolicy says where to read. The zero value is any replica that is not
// more than 10 s behind.
type ReadPolicy struct {
	// From is the kind of host. Default: Replica.
	From Source

	// MaxLag is how old what is read may be. It is known to about twice
	// [Config].Probe, so with less than that a busy shard is mostly read from its
	// primary; so it is when its primary has not been seen for that long.
	// Default: 10 s.
	MaxLag time.Duration

	// After is the write that must be seen: only replicas that are known to
	// have it are read. Default: none.
	After Token
}

// Read returns the shard for reading by a policy: Query and QueryRow go to a
// replica of its node, transactions are read only, and the other methods return
// [ErrReadOnly]. The primary is read when no replica fits or the one that was chosen
// fails. Two such values are equal only if one is a copy of the other.
func (s Shard) Read(p ReadPolicy) Shard {
	if p.MaxLag == 0 {
		p.MaxLag = 10 * time.Second
	}
	s.read = &p
	return s
}

// A Token says how far a node's log was when a write was done. A program that
// keeps it, as in a cookie, and gives it to [ReadPolicy].After reads its own
// writes from replicas. The token of another node than the shard's leads to the
// primary.
type Token struct {
	Node     string
	Timeline uint32
	LSN      uint64
}

// onlyPrimary is the LSN of a token that no replica ever has.
const onlyPrimary = ^uint64(0)

// tokenSQL reads timeline and end of the log, including what is not yet on disk.
const tokenSQL = `select ('x' || left(pg_catalog.pg_walfile_name(lsn), 8))::bit(32)::bigint, lsn - '0/0'::pg_lsn
	from pg_catalog.pg_current_wal_insert_lsn() lsn`

// Token returns a token for all writes on the shard that were done before. It
// is one round trip.
func (s Shard) Token(ctx context.Context) (t Token, err error) {
	s.read = nil
	rows := s.query(ctx, tokenSQL, nil)
	err = (*row)(rows).Scan(&t.Timeline, &t.LSN)
	t.Node = rows.place.name() // the shard may have moved meanwhile
	return t, err
}

// InTxToken is [Shard.InTx], and returns a token for what was written. It costs
// a round trip more. When the token cannot be had although the transaction was
// committed, it is one that only the primary satisfies.
func (s Shard) InTxToken(ctx context.Context, fn func(pgx.Tx) error) (Token, error) {
	if err := s.InTx(ctx, fn); err != nil {
		return Token{}, err
	}
	t, err := s.Token(ctx)
	if err != nil {
		return Token{Node: s.Node(), LSN: onlyPrimary}, nil
	}
	return t, nil
}

// String returns the token as ParseToken reads it, for example "pg_1:2:16/B374D848".
func (t Token) String() string {
	return fmt.Sprintf("%s:%d:%X/%X", t.Node, t.Timeline, t.LSN>>32, uint32(t.LSN))
}

// MarshalText is String.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is ParseToken.
func (t *Token) UnmarshalText(text []byte) (err error) {
	*t, err = ParseToken(string(text))
	return err
}

// ParseToken reads a token. As a token may come from a browser it trusts none:
// one that is made up leads to the primary or to what any replica has.
func ParseToken(text string) (Token, error) {
	wrong := errors.New("shard: the token is not valid")
	parts := strings.Split(text, ":")
	if len(parts) != 3 || checkName(parts[0]) != nil {
		return Token{}, wrong
	}
	timeline, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return Token{}, wrong
	}
	high, low, ok := strings.Cut(parts[2], "/")
	h, err1 := strconv.ParseUint(high, 16, 32)
	l, err2 := strconv.ParseUint(low, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return Token{}, wrong
	}
	return Token{parts[0], uint32(timeline), h<<32 | l}, nil
}

// reader returns the host to read from, nil for the primary.
func (n *node) reader(p *ReadPolicy) *member {
	if p == nil || p.From == Primary || len(n.members) < 2 {
		return nil
	}
	now := time.Now()
	var fit []*member
	var nearest *member
	for _, m := range n.members {
		st := m.status.Load()
		if st.err != nil || !st.primary && !n.fits(st, p, now) {
			continue
		}
		if !st.primary {
			fit = append(fit, m)
		}
		if nearest == nil || st.took < nearest.status.Load().took {
			nearest = m
		}
	}
	switch {
	case p.From == Nearest && nearest != nil && !nearest.status.Load().primary:
		return nearest
	case p.From == Nearest || len(fit) == 0:
		return nil
	}
	return fit[rand.IntN(len(fit))]
}

// fits reports whether a replica has what the policy wants to see.
func (n *node) fits(st *status, p *ReadPolicy, now time.Time) bool {
	if p.After != (Token{}) && (p.After.Node != n.Name || st.timeline < p.After.Timeline || st.lsn < p.After.LSN) {
		return false
	}
	return now.Sub(st.fresh) <= p.MaxLag
}
