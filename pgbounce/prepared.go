package pgbounce

import (
	"strconv"
	"strings"
	"sync"
)

// A statement is a prepared statement of any number of clients: what is in a
// Parse after its name. Clients whose statements have the same text and types
// share it, and with it what servers have prepared.
type statement struct {
	body string // text, 0, number of types, types
	name string // on servers, or "" of an unnamed one
	refs int    // under the table's lock
	pins bool   // its text has an effect that outlives the transaction
	// local, if set, is a command of our own that it stands for.
	local *localCommand
}

func newStatement(body []byte) *statement {
	sql := text(body)
	return &statement{body: string(body), pins: pinned(sql), local: standsFor(sql)}
}

// A named is a client's own name for a statement.
type named struct {
	name string
	*statement
}

// servedPrefix begins the names on servers, which are as PgBouncer's.
const servedPrefix = "PGBOUNCE_"

// statements are all named ones there are.
type statements struct {
	mu     sync.Mutex
	byBody map[string]*statement
	last   uint64
}

// intern returns the statement with the body, and counts one use more.
func (t *statements) intern(body []byte) *statement {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byBody[string(body)]
	if s == nil {
		t.last++
		s = newStatement(body)
		s.name = servedPrefix + strconv.FormatUint(t.last, 10)
		if t.byBody == nil {
			t.byBody = map[string]*statement{}
		}
		t.byBody[s.body] = s
	}
	s.refs++
	return s
}

// hold counts one use more, and release one less.
func (t *statements) hold(s *statement) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.refs++
}

func (t *statements) release(s *statement) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.refs--; s.refs == 0 {
		delete(t.byBody, s.body)
	}
}

func (t *statements) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byBody)
}

// text returns the SQL of a Parse's body.
func text(body []byte) []byte {
	for i, c := range body {
		if c == 0 {
			return body[:i]
		}
	}
	return body
}

// served are the statements that one server has. Each has the turn in which it
// was used last; turns are counted per message.
type served struct {
	used  map[*statement]uint64
	turn  uint64
	begin uint64 // the last turn before the batch under way
}

// use tells whether the server has s, and marks it as used.
func (v *served) use(s *statement) bool {
	if _, ok := v.used[s]; !ok {
		return false
	}
	v.turn++
	v.used[s] = v.turn
	return true
}

func (v *served) add(s *statement) {
	if v.used == nil {
		v.used = map[*statement]uint64{}
	}
	v.turn++
	v.used[s] = v.turn
}

// surplus returns a statement to close if the server has more than limit: the
// one used longest ago, unless it is in the batch under way.
func (v *served) surplus(limit int) *statement {
	if len(v.used) < limit {
		return nil
	}
	var oldest *statement
	turn := v.begin + 1
	for s, used := range v.used {
		if used < turn {
			oldest, turn = s, used
		}
	}
	return oldest
}

// asClient puts the client's name of a statement in the place of the server's
// in a text of an error.
func asClient(message string, n *named) string {
	if n == nil || n.statement == nil || n.statement.name == "" {
		return message
	}
	return strings.ReplaceAll(message, `"`+n.statement.name+`"`, `"`+n.name+`"`)
}
