package pgbounce

import (
	"slices"
	"strings"
)

// alwaysTracked are the session parameters that each client keeps.
var alwaysTracked = []string{
	"client_encoding", "DateStyle", "TimeZone", "IntervalStyle", "standard_conforming_strings", "application_name",
}

// parameters are the values of the tracked ones, in their order. Values are
// never changed in place, so that clients may share them.
type parameters struct{ names, values []string }

// tracked returns the place of a parameter among the tracked ones, or -1.
func (b *Bouncer) trackedIndex(name string) int {
	return slices.IndexFunc(b.tracked, func(t string) bool { return strings.EqualFold(t, name) })
}

// set notes a value, if the parameter is tracked.
func (p *parameters) set(b *Bouncer, name, value string) {
	i := b.trackedIndex(name)
	if i < 0 || i < len(p.values) && p.values[i] == value {
		return
	}
	values := make([]string, len(b.tracked))
	copy(values, p.values)
	values[i] = value
	p.values = values
	p.names = b.tracked
}

// differ returns the SQL that makes a server's parameters those of p, or "".
func (p *parameters) differ(server *parameters) string {
	if len(p.values) == 0 || len(server.values) > 0 && &p.values[0] == &server.values[0] {
		return ""
	}
	var sql strings.Builder
	for i, want := range p.values {
		if want == "" && p.names[i] != "application_name" || i < len(server.values) && server.values[i] == want {
			continue
		}
		if i < len(server.values) && server.values[i] == "" && want == "" {
			continue
		}
		sql.WriteString("set ")
		sql.WriteString(p.names[i])
		sql.WriteString(" = ")
		sql.WriteString(quoteLiteral(want))
		sql.WriteString(";")
	}
	return sql.String()
}

// adopt takes the server's values, which are those the client wanted in
// PostgreSQL's own spelling, and tells the client of that.
func (p *parameters) adopt(c *client, server *parameters) {
	for i, have := range server.values {
		if i < len(p.values) && p.values[i] != "" && p.values[i] != have {
			c.answer(appendParameter(nil, p.names[i], have))
		}
	}
	*p = *server
}

// quoteLiteral quotes for any setting of standard_conforming_strings.
func quoteLiteral(s string) string {
	return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
}
