package pgbounce

import (
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

// localCommandOf reads SET pgbounce.x = y, SET pgbounce.x TO y and RESET
// pgbounce.x, and returns nil for all other SQL.
func localCommandOf(sql []byte) *localCommand {
	if len(sql) < 8 || len(sql) > 256 || !prefix(sql, "set") && !prefix(sql, "reset") {
		return nil // nearly always
	}
	words := strings.Fields(strings.TrimRight(string(sql), "; \t\r\n"))
	if len(words) < 2 {
		return nil
	}
	rest := strings.Join(words[1:], " ")
	switch strings.ToLower(words[0]) {
	case "reset":
		if name := strings.ToLower(rest); name == shardParameter || name == readOnlyParameter {
			return &localCommand{name: name}
		}
	case "set":
		rest = strings.TrimPrefix(strings.TrimPrefix(rest, "session "), "SESSION ")
		i := strings.IndexAny(rest, "= ")
		if i < 0 {
			return nil
		}
		name := strings.ToLower(rest[:i])
		if name != shardParameter && name != readOnlyParameter {
			return nil
		}
		value := strings.TrimLeft(rest[i:], "= ")
		if len(value) > 3 && strings.EqualFold(value[:3], "to ") {
			value = value[3:]
		}
		value = strings.Trim(strings.TrimSpace(value), "'\"")
		if strings.EqualFold(value, "default") {
			value = ""
		}
		return &localCommand{name: name, value: value}
	}
	return nil
}

// statement returns what PostgreSQL prepares in the command's place: it has no
// effect there.
func (l *localCommand) statement() string {
	return standIn + l.name + "=" + strings.ReplaceAll(l.value, "'", "") + "'\x00\x00\x00"
}

const standIn = "set pgbounce.nothing to '"

// standsFor returns the command that a statement has the place of, or nil.
func standsFor(sql []byte) *localCommand {
	what, ok := strings.CutPrefix(string(sql), standIn)
	if !ok {
		return nil
	}
	name, value, _ := strings.Cut(strings.TrimSuffix(what, "'"), "=")
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

// target returns the pool for the client's next transaction.
func (c *client) target() (*pool, *wireError) {
	if c.route.shard == "" && !c.route.readOnly {
		return c.pool, nil
	}
	node, err := c.node()
	if err != nil {
		return nil, &wireError{severity: "ERROR", code: "08004", message: err.Error()}
	}
	d := c.b.database(node)
	if d == nil {
		return nil, &wireError{severity: "ERROR", code: "08004", message: "no such database: " + node}
	}
	return c.b.poolOf(d, c.user, c.login), nil
}

// node returns the name of the database that a route leads to.
func (c *client) node() (string, error) {
	router := c.b.config().Router
	switch {
	case router != nil:
		return router.Node(c.database, c.route.shard, c.route.readOnly)
	case c.route.shard != "":
		return "", fmt.Errorf("shard %q: no shards are configured", c.route.shard)
	}
	return cmp.Or(c.pool.db.config().ReadOnly, c.database), nil
}
