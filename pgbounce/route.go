package pgbounce

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"
)

// A Router says where a shard lies. An application's own map, such as that of
// package shard, is one in a few lines.
type Router interface {
	// Node returns the name in Config.Databases of the node that has a shard
	// of a database, or of a replica of it if only reading is asked for. It is
	// called at the begin of each transaction that names a shard, on the
	// thread that forwards, so it must answer from memory.
	Node(database, shard string, readOnly bool) (node string, err error)
}

// A route is where a client's next transaction goes.
type route struct {
	shard    string
	readOnly bool
}

// The parameters that choose a route, at startup or by SET.
const (
	shardParameter    = "pgbounce.shard"
	readOnlyParameter = "pgbounce.read_only"
)

// A localCommand sets a route. No server sees it.
type localCommand struct{ name, value string }

// maxLocal is the longest command that is looked at.
const maxLocal = 1024

const space = " \t\r\n"

// localCommandOf reads SET pgbounce.x = y, SET pgbounce.x TO y and RESET
// pgbounce.x, and returns nil for all other SQL.
func localCommandOf(sql []byte) *localCommand {
	sql = bytes.TrimLeft(sql, space)
	if len(sql) < 8 || len(sql) > maxLocal || !prefix(sql, "set") && !prefix(sql, "reset") {
		return nil // nearly always
	}
	verb, rest := cutWord(strings.TrimRight(string(sql), ";"+space))
	name, rest := cutWord(rest)
	if strings.EqualFold(name, "session") {
		name, rest = cutWord(rest)
	}
	name = strings.ToLower(name)
	switch {
	case name != shardParameter && name != readOnlyParameter:
	case strings.EqualFold(verb, "reset") && rest == "":
		return &localCommand{name: name}
	case strings.EqualFold(verb, "set"):
		value, ok := strings.CutPrefix(rest, "=")
		if !ok {
			var to string
			to, value = cutWord(rest)
			ok = strings.EqualFold(to, "to")
		}
		if value, ok = literal(strings.TrimLeft(value, space), ok); ok {
			return &localCommand{name: name, value: value}
		}
	}
	return nil
}

// cutWord returns the first word, and what follows it.
func cutWord(s string) (word, rest string) {
	s = strings.TrimLeft(s, space)
	end := strings.IndexAny(s, "="+space)
	if end < 0 {
		end = len(s)
	}
	return s[:end], strings.TrimLeft(s[end:], space)
}

// literal returns what a value in SQL stands for, if it is one value.
func literal(s string, ok bool) (string, bool) {
	switch {
	case !ok || s == "":
		return "", false
	case s[0] == '\'' || s[0] == '"':
		value, rest, err := unquote(s[1:], s[0])
		return value, err == nil && rest == ""
	case strings.EqualFold(s, "default"):
		return "", true
	}
	return s, !strings.ContainsAny(s, "'\";,"+space)
}

// statement returns what PostgreSQL prepares in the command's place: it has no
// effect there.
func (l *localCommand) statement() string {
	return standIn + l.name + "=" + strings.ReplaceAll(l.value, "'", "''") + "'\x00\x00\x00"
}

const standIn = "set pgbounce.nothing to '"

// standsFor returns the command that a statement has the place of, or nil.
func standsFor(sql []byte) *localCommand {
	what, ok := strings.CutPrefix(string(sql), standIn)
	if !ok {
		return nil
	}
	what, _, err := unquote(what, '\'')
	if err != nil {
		return nil
	}
	name, value, _ := strings.Cut(what, "=")
	return &localCommand{name: name, value: value}
}

func (l *localCommand) apply(c *client) {
	switch l.name {
	case shardParameter:
		c.route.shard = l.value
	case readOnlyParameter:
		c.route.readOnly = l.value == "on" || l.value == "true" || l.value == "1" || l.value == "yes"
	}
}

// target returns the pool for the client's next transaction, which p begins.
func (c *client) target(p []byte) (*pool, *wireError) {
	if c.route.shard == "" && !c.route.readOnly {
		return c.pool, nil
	}
	if p[0] == 'P' {
		// A command that leads away from a shard that is not there must get
		// through.
		_, sql, _ := cstring(p[headerSize:])
		if localCommandOf(text(sql)) != nil {
			return c.pool, nil
		}
	}
	node, err := c.node()
	if err != nil {
		return nil, &wireError{severity: "ERROR", code: "08004", message: err.Error()}
	}
	d := c.b.database(node)
	if d == nil {
		return nil, &wireError{severity: "ERROR", code: "08004", message: "no such database: " + node}
	}
	return c.b.poolOf(d, c.user, c.mode, c.login), nil
}

// node returns the name of the database that a route leads to.
func (c *client) node() (string, error) {
	if c.route.shard == "" {
		return cmp.Or(c.pool.db.config().ReadOnly, c.database), nil
	}
	router := c.b.config().Router
	if router == nil {
		return "", fmt.Errorf("shard %q: no shards are configured", c.route.shard)
	}
	return router.Node(c.database, c.route.shard, c.route.readOnly)
}
