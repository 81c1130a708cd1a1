package pgbounce

// RouteCommand reads a command that chooses a route, as it is and out of the
// statement that PostgreSQL prepares in its place.
func RouteCommand(sql string) (command, prepared string, ok bool) {
	l := localCommandOf([]byte(sql))
	if l == nil {
		return "", "", false
	}
	command = l.name + "=" + l.value
	if l = newStatement([]byte(l.statement())).local; l != nil {
		prepared = l.name + "=" + l.value
	}
	return command, prepared, true
}
