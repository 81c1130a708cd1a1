package hashkv

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// version is of what the map writes to Redis.
const version = 1

// A header says how a map is stored. It is JSON at <prefix>:header.
type header struct {
	Map     string `json:"map"` // "dense", "sparse" or "strings"
	Version int    `json:"version"`
	ID      string `json:"id"`    // drawn when the map was made
	Keys    string `json:"keys"`  // "live bits 0xff", "up to 64 bytes"
	Value   string `json:"value"` // "24 bits", "up to 64 bytes"
	Slots   int    `json:"slots,omitempty"`
	Tagged  int    `json:"tagged,omitempty"` // log2 of the number of tags

	// Level is the log2 of the number of buckets. A map that is growing from it
	// to the next has some buckets of either. A map that has grown is sweeping
	// while there may be tombstones that do not expire.
	Level    int  `json:"level,omitempty"`
	Growing  bool `json:"growing,omitempty"`
	Sweeping bool `json:"sweeping,omitempty"`

	stored string // the JSON, to tell whether it is still that
}

// match checks that h, which is stored, describes the map that want does.
func (h header) match(key string, want header) error {
	for _, field := range []struct{ name, stored, wanted string }{
		{"version", strconv.Itoa(h.Version), strconv.Itoa(want.Version)},
		{"map", h.Map, want.Map},
		{"keys", h.Keys, want.Keys},
		{"values", h.Value, want.Value},
		{"slots", strconv.Itoa(h.Slots), strconv.Itoa(want.Slots)},
	} {
		if field.stored != field.wanted {
			return &MismatchError{Key: key, Field: field.name, Stored: field.stored, Wanted: field.wanted}
		}
	}
	bad := h.Level < h.Tagged || h.Level > maxLevel || h.Tagged < 0 || h.Tagged > slotBits
	if bad || h.Level == 0 && h.Map != "dense" {
		return &CorruptError{Key: key, Err: errors.New("the header has levels that no map has")}
	}
	return nil
}

// How long a process may go by a header that it has read.
const (
	// From refreshAfter on, the first call that comes by reads it again. This
	// is how soon a process takes notice of a map that grew or is lost.
	refreshAfter = time.Second

	// From staleAfter on, every call waits for the header. It is far below the
	// life of a tombstone: no call goes to a bucket whose tombstone is gone.
	staleAfter = time.Minute
)

// How far a process may fill a map before it looks whether the buckets are still
// within the limits: for so long, or by so many entries in a bucket. Some ten
// processes may do so at a time, between the fill that is refused and the one at
// which a bucket passes the limit.
const (
	guardAfter = 10 * time.Second
	guardFill  = 8
)

// outgrown reports whether this process alone may have filled the map by
// guardFill since the guard looked.
func (b *book) outgrown(v *view) bool {
	return b.guard != nil && b.written.Load() > guardFill<<v.Level
}

// A view is a header as one process sees it.
type view struct {
	header
	read    time.Time // when the header was
	tried   time.Time // when that was tried last
	guarded time.Time // when the limits were read, and the fill
	limits  limits
	refuse  *LimitError // why writes would harm, or nil
}

// since returns the time since t by the clock that says more: the monotonic one
// stops while a machine sleeps, the other may be set.
func since(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// A book is what both kinds of map know of their header.
type book struct {
	rdb    redis.UniversalClient
	prefix string
	want   header // without ID, Tagged and Level
	warn   func(error)

	// plan completes the header of a new map by what the server allows; guard
	// tells whether writes to an existing one would harm. A Dense has neither.
	plan  func(h *header, l limits) error
	guard func(ctx context.Context, v *view) (*LimitError, error)

	turn    chan struct{} // held by the call that reads the header
	failed  failure       // of the last one that did; guarded by turn
	seen    atomic.Pointer[view]
	lost    atomic.Bool
	written atomic.Int64 // entries since the guard looked
}

// A failure is why a call could not read the header, and when.
type failure struct {
	err error
	at  time.Time
}

// wait takes the turn. If another call failed to read the header meanwhile, it
// returns that failure: with a server that is away each would have to wait for
// its own, one after the other.
func (b *book) wait(ctx context.Context) error {
	begun := time.Now()
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.failed.at.After(begun) {
		defer b.pass(nil)
		return b.failed.err
	}
	return nil
}

// pass gives the turn away, after a call that had this error.
func (b *book) pass(err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		b.failed = failure{err, time.Now()}
	}
	<-b.turn
}

func (b *book) headerKey() string { return b.prefix + ":header" }

func (b *book) open(ctx context.Context) error {
	v, err := b.reopen(ctx, true)
	if err == nil && v.refuse != nil {
		err = v.refuse
	}
	if err != nil {
		return fmt.Errorf("hashkv: open %s: %w", b.prefix, err)
	}
	return nil
}

// reopen opens the map, unless that is done and need not be done again.
func (b *book) reopen(ctx context.Context, again bool) (v *view, err error) {
	if err := b.wait(ctx); err != nil {
		return nil, err
	}
	defer func() { b.pass(err) }()
	if v := b.seen.Load(); v != nil && !again {
		return v, nil
	}
	read := time.Now()
	h, err := b.load(ctx)
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	if err := checkEviction(ctx, b.rdb); err != nil {
		b.warn(fmt.Errorf("hashkv: open %s: %w", b.prefix, err))
	}
	var limits limits
	if b.guard != nil {
		var failed error
		if limits, failed = readLimits(ctx, b.rdb, b.prefix); failed != nil {
			if err != nil {
				return nil, failed // a new map cannot be planned
			}
			b.warn(fmt.Errorf("hashkv: open %s: %w", b.prefix, failed))
			limits.entries.value, limits.bytes.value = stockEntries, maxBytes
		}
	}
	if err != nil {
		h = b.want
		h.ID = rand.Text()
		if b.guard != nil {
			if err := b.plan(&h, limits); err != nil {
				return nil, err
			}
		}
		// Another process may make one at the same time.
		if err = b.rdb.SetNX(ctx, b.headerKey(), h.text(), 0).Err(); err == nil {
			h, err = b.load(ctx)
		}
		if errors.Is(err, redis.Nil) {
			err = ErrLost // just now
		}
	}
	if err != nil {
		return nil, err
	}
	v = &view{header: h, read: read, tried: read, guarded: read, limits: limits}
	if b.guard != nil {
		var failed error
		if v.refuse, failed = b.guard(ctx, v); failed != nil {
			b.warn(fmt.Errorf("hashkv: open %s: %w", b.prefix, failed))
		}
	}
	b.written.Store(0)
	b.seen.Store(v)
	b.lost.Store(false) // after that, or a call would go by the old one
	return v, nil
}

// load reads the header and checks that it is of this map.
func (b *book) load(ctx context.Context) (header, error) {
	text, err := b.rdb.Get(ctx, b.headerKey()).Result()
	if err != nil {
		return header{}, b.typed(b.headerKey(), err)
	}
	var h header
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return header{}, &CorruptError{Key: b.headerKey(), Err: errors.New("not the header of a map")}
	}
	h.stored = text
	return h, h.match(b.headerKey(), b.want)
}

func (h header) text() string {
	text, err := json.Marshal(h)
	if err != nil {
		panic("bug: " + err.Error())
	}
	return string(text)
}

// swap replaces the header if it is still old.
func (b *book) swap(ctx context.Context, old, next header) (bool, error) {
	return swapHeader.Run(ctx, b.rdb, []string{b.headerKey()}, old.stored, next.text()).Bool()
}

var swapHeader = redis.NewScript(`
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1`)

// look returns a view that is young enough, and reads the header if need be.
// Writes also want one whose guard has looked lately.
func (b *book) look(ctx context.Context, write bool) (*view, error) {
	if b.lost.Load() {
		return nil, ErrLost
	}
	v := b.seen.Load()
	if v == nil {
		return b.reopen(ctx, false)
	}
	if since(v.tried) < refreshAfter && !(write && b.outgrown(v)) {
		return v, nil
	}
	stale := since(v.read) > staleAfter
	if stale || write && b.outgrown(v) {
		if err := b.wait(ctx); err != nil {
			if stale || ctx.Err() != nil {
				return nil, err
			}
			return v, nil // as below
		}
	} else {
		select {
		case b.turn <- struct{}{}:
		default:
			return v, nil // another call is at it
		}
	}
	var err error
	defer func() { b.pass(err) }()
	if v = b.seen.Load(); since(v.tried) < refreshAfter && since(v.read) < staleAfter && !(write && b.outgrown(v)) {
		return v, nil // another call was at it
	}
	var fresh *view
	fresh, err = b.refresh(ctx, v)
	if err != nil && !stale && !b.lost.Load() && !final(err) {
		// The server that has the header is away; those of the entries may not
		// be. Not every call shall wait for it.
		again := *v
		again.tried = time.Now()
		b.seen.Store(&again)
		return &again, nil
	}
	return fresh, err
}

// refresh reads the header again, with the turn held.
func (b *book) refresh(ctx context.Context, old *view) (*view, error) {
	read := time.Now()
	h, err := b.load(ctx)
	switch {
	case errors.Is(err, redis.Nil), h.ID != "" && h.ID != old.ID:
		b.lost.Store(true)
		return nil, ErrLost
	case err != nil:
		if final(err) { // nobody may go by the old one any more
			unknown := *old
			unknown.read = time.Time{}
			b.seen.Store(&unknown)
		}
		return nil, err
	}
	v := &view{header: h, read: read, tried: read, guarded: old.guarded, limits: old.limits, refuse: old.refuse}
	written := b.written.Load()
	due := v.refuse != nil || b.outgrown(v) || written > 0 && since(v.guarded) > guardAfter
	if b.guard != nil && due {
		// Somebody may have set other limits, filled the map, or grown it. If the
		// servers do not tell, it stays as it was until the next time.
		now := *v
		if !v.limits.tried || v.refuse != nil {
			now.limits, err = readLimits(ctx, b.rdb, b.prefix)
		}
		if err == nil {
			now.refuse, err = b.guard(ctx, &now)
		}
		if err == nil {
			*v = now
		}
		v.guarded = read
		b.written.Add(-written)
	}
	b.seen.Store(v)
	return v, nil
}

// reread returns a view that is younger than the moment given.
func (b *book) reread(ctx context.Context, than time.Time) (*view, error) {
	if b.lost.Load() {
		return nil, ErrLost
	}
	if err := b.wait(ctx); err != nil {
		return nil, err
	}
	v := b.seen.Load()
	if v.read.After(than) {
		b.pass(nil)
		return v, nil
	}
	v, err := b.refresh(ctx, v)
	b.pass(err)
	return v, err
}

// final tells errors about the map itself from those of servers and networks.
func final(err error) bool {
	_, mismatch := errors.AsType[*MismatchError](err)
	_, corrupt := errors.AsType[*CorruptError](err)
	return mismatch || corrupt
}

// typed gives an error of Redis about a key that is of another type its own.
func (b *book) typed(key string, err error) error {
	if wrongType(err) {
		return &CorruptError{Key: key, Err: err}
	}
	return err
}

func wrongType(err error) bool { return err != nil && redis.HasErrorPrefix(err, "WRONGTYPE") }
