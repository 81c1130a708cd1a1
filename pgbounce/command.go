package pgbounce

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// A command is a query to the console: a verb with an argument or none, or SET
// with a key and a value.
type command struct {
	verb       string // in lower case
	arg        string
	key, value string // of SET
}

// The two forms are those of PgBouncer: words are letters, digits and
// underscores, or anything in double quotes.
const (
	rxBlank = `[ \t\n\r]`
	rxWord  = `("(?:[^"]|"")*"|[0-9A-Za-z_]+)`
	rxEnd   = rxBlank + `*(?:;` + rxBlank + `*)?$`
)

var (
	verbForm = regexp.MustCompile(`^` + rxBlank + `*` + rxWord + `(?:` + rxBlank + `+` + rxWord + `)?` + rxEnd)
	setForm  = regexp.MustCompile(`^` + rxBlank + `*[sS][eE][tT]` + rxBlank + `+` + rxWord +
		`(?:` + rxBlank + `*=` + rxBlank + `*|` + rxBlank + `+[tT][oO]` + rxBlank + `+)` +
		`(?:` + rxWord + `|('(?:[^']|'')*'))` + rxEnd)
	emptyForm = regexp.MustCompile(`^(?:` + rxBlank + `|--[^\n]*(?:\n|$))*` + rxEnd)
)

// The longest that PgBouncer takes.
const (
	maxVerb  = 15
	maxArg   = 63
	maxValue = 255
)

func parseCommand(sql string) (command, *wireError) {
	var c command
	if m := verbForm.FindStringSubmatch(sql); m != nil {
		c = command{verb: strings.ToLower(bare(m[1])), arg: bare(m[2])}
	} else if m := setForm.FindStringSubmatch(sql); m != nil {
		c = command{verb: "set", key: bare(m[1]), value: bare(m[2] + m[3])}
		if c.key == "" {
			return command{}, consoleError("bad arguments")
		}
	} else {
		return command{}, invalidCommand(sql)
	}
	if len(c.verb) > maxVerb || len(c.arg+c.key) > maxArg || len(c.value) > maxValue {
		return command{}, consoleError("bad arguments")
	}
	return c, nil
}

func bare(s string) string {
	if s == "" || s[0] != '"' && s[0] != '\'' {
		return s
	}
	q := s[:1]
	return strings.ReplaceAll(s[1:len(s)-1], q+q, q)
}

func consoleError(format string, args ...any) *wireError {
	return &wireError{severity: "ERROR", code: "08P01", message: fmt.Sprintf(format, args...)}
}

// maxEcho is how much of a query comes back in an error.
const maxEcho = 900

func invalidCommand(sql string) *wireError {
	if len(sql) > maxEcho {
		sql = strings.ToValidUTF8(sql[:maxEcho], "") + "..."
	}
	return consoleError("invalid command '%s', use SHOW HELP;", sql)
}

// commands are those for admins, by their verbs. Each returns its tag, or "" if
// there is to be no answer at all.
var commands = map[string]func(c *console, cmd command) (tag string, err error){
	"disable":     (*console).disable,
	"enable":      (*console).enable,
	"kill":        (*console).kill,
	"kill_client": (*console).killClient,
	"pause":       (*console).pause,
	"reconnect":   (*console).reconnect,
	"reload":      (*console).reload,
	"resume":      (*console).resume,
	"set":         (*console).set,
	"shutdown":    (*console).shutdown,
	"suspend":     (*console).suspend,
	"wait_close":  (*console).waitClose,
}

// parametersOfDrivers are set and shown by drivers that do not look first
// whether they need to. Setting them has no effect.
var parametersOfDrivers = map[string]string{
	"application_name":              "",
	"client_encoding":               "UTF-8",
	"datestyle":                     "ISO",
	"default_transaction_isolation": "read committed",
	"extra_float_digits":            "2",
	"standard_conforming_strings":   "on",
	"timezone":                      "GMT",
}

// run answers a query, but for its Z, and tells whether there was an answer.
func (c *console) run(sql string) bool {
	if emptyForm.MatchString(sql) {
		c.out = appendHeader(c.out, 'I', 0)
		return true
	}
	tag, err := "", error(nil)
	cmd, bad := parseCommand(sql)
	do := commands[cmd.verb]
	switch {
	case bad != nil:
		c.error(bad)
		return true
	case cmd.verb == "show" || cmd.verb == "select":
		tag = "SHOW"
		if !c.show(strings.ToLower(cmd.arg)) {
			err = errSyntax
		}
	case cmd.verb == "set" && cmd.key == "" || do == nil:
		err = errSyntax
	case isDriverParameter(cmd.key):
		c.out = appendError(c.out, 'N', "NOTICE", "00000", "SET ignored")
		tag = "SET"
	case !c.admin:
		err = errNotAdmin
	default:
		c.b.log().Info("pgbounce: console command", "command", strings.ToUpper(cmd.verb), "argument", cmd.arg+cmd.key, "user", c.user)
		tag, err = do(c, cmd)
	}
	switch {
	case errors.Is(err, errSyntax):
		c.error(invalidCommand(sql))
	case err != nil:
		c.error(asConsoleError(err))
	case tag == "":
		return false
	default:
		c.out = appendTag(c.out, tag)
	}
	return true
}

var (
	errSyntax   = errors.New("pgbounce: there is no such command")
	errNotAdmin = consoleError("admin access needed")
)

func isDriverParameter(name string) bool {
	_, ok := parametersOfDrivers[strings.ToLower(name)]
	return ok
}

// asConsoleError returns what an admin is told of an error of the Bouncer's
// methods, where the command itself does not know better.
func asConsoleError(err error) *wireError {
	if e, ok := errors.AsType[*wireError](err); ok {
		return e
	}
	switch {
	case errors.Is(err, ErrUnknownClient):
		return consoleError("client not found")
	case errors.Is(err, ErrClosed):
		return consoleError("pooler is shutting down")
	case errors.Is(err, context.Canceled):
		return &wireError{severity: "ERROR", code: "57014", message: "canceling statement due to user request"}
	}
	return consoleError("%s", strings.TrimPrefix(err.Error(), "pgbounce: "))
}

// onDatabase does something to the database that a command names, or to all.
func (c *console) onDatabase(verb, name string, do func(string) error) error {
	if name == consoleName {
		return consoleError("cannot %s admin db: %s", verb, name)
	}
	err := do(name)
	switch {
	case errors.Is(err, ErrUnknownDatabase):
		return consoleError("no such database: %s", name)
	case errors.Is(err, ErrState):
		return consoleError("already suspended/paused")
	}
	return err
}

func (c *console) pause(cmd command) (string, error) {
	if c.halted() {
		return "", consoleError("already suspended/paused")
	}
	return "PAUSE", c.onDatabase("pause", cmd.arg, func(name string) error {
		err := c.wait(func(ctx context.Context) error { return c.b.Pause(ctx, name) })
		if errors.Is(err, errInterrupted) {
			_ = c.b.Resume(name) // as nobody would know that it is paused
		}
		return err
	})
}

// known returns an error for a name that no client has used: unlike others,
// RESUME and ENABLE do not make a database of it where "*" stands for all.
func (c *console) known(name string) error {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if name == "" || name == consoleName || c.b.databases[name] != nil {
		return nil
	}
	return consoleError("no such database: %s", name)
}

func (c *console) resume(cmd command) (string, error) {
	if err := c.known(cmd.arg); err != nil {
		return "", err
	}
	if cmd.arg == consoleName {
		return "", consoleError("database %s is not paused", cmd.arg)
	}
	switch err := c.b.Resume(cmd.arg); {
	case cmd.arg != "" && errors.Is(err, ErrState):
		return "", consoleError("database %s is not paused", cmd.arg)
	case errors.Is(err, ErrState):
		return "", consoleError("pooler is not paused/suspended")
	default:
		return "RESUME", err
	}
}

func (c *console) suspend(cmd command) (string, error) {
	switch {
	case cmd.arg != "":
		return "", errSyntax
	case c.halted():
		return "", consoleError("already suspended/paused")
	case c.b.anyPaused():
		return "", consoleError("cannot suspend with paused databases")
	}
	err := c.wait(func(ctx context.Context) error {
		ctx, cancel := withTimeout(ctx, c.b.config().SuspendTimeout)
		defer cancel()
		return c.b.Suspend(ctx)
	})
	if err == nil {
		c.suspended = true
		return "SUSPEND", nil
	}
	_ = c.b.Resume("")
	if errors.Is(err, context.DeadlineExceeded) {
		return "", consoleError("suspend_timeout")
	}
	return "", err
}

// halted tells whether all databases are paused or suspended.
func (c *console) halted() bool { return c.b.paused.Load() || c.b.suspended.Load() }

func (b *Bouncer) anyPaused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range b.databases {
		if d.paused.Load() {
			return true
		}
	}
	return false
}

func (c *console) disable(cmd command) (string, error) {
	if cmd.arg == "" {
		return "", consoleError("a database is required")
	}
	return "DISABLE", c.onDatabase("disable", cmd.arg, c.b.Disable)
}

func (c *console) enable(cmd command) (string, error) {
	if cmd.arg == "" {
		return "", consoleError("a database is required")
	}
	if err := c.known(cmd.arg); err != nil {
		return "", err
	}
	return "ENABLE", c.onDatabase("enable", cmd.arg, c.b.Enable)
}

func (c *console) reconnect(cmd command) (string, error) {
	return "RECONNECT", c.onDatabase("reconnect", cmd.arg, c.b.Reconnect)
}

func (c *console) kill(cmd command) (string, error) {
	if c.halted() {
		return "", consoleError("already suspended/paused")
	}
	return "KILL", c.onDatabase("kill", cmd.arg, c.b.Kill)
}

func (c *console) waitClose(cmd command) (string, error) {
	if cmd.arg == consoleName {
		return "", consoleError("cannot wait in admin db: %s", cmd.arg)
	}
	return "WAIT_CLOSE", c.onDatabase("wait", cmd.arg, func(name string) error {
		return c.wait(func(ctx context.Context) error { return c.b.WaitClose(ctx, name) })
	})
}

func (c *console) killClient(cmd command) (string, error) {
	id, err := strconv.ParseUint(cmd.arg, 10, 64)
	if err != nil {
		return "", consoleError("invalid client pointer supplied")
	}
	if c.b.consoles.kill(id) {
		return "KILL_CLIENT", nil
	}
	return "KILL_CLIENT", c.b.KillClient(id)
}

func (c *console) reload(cmd command) (string, error) {
	if cmd.arg != "" {
		return "", errSyntax
	}
	reload := c.b.config().Admin.Reload
	if reload == nil {
		return "", unsupported("RELOAD")
	}
	if err := c.wait(reload); err != nil {
		c.b.log().Error("pgbounce: RELOAD failed", "error", err.Error())
		return "", &wireError{severity: "ERROR", code: "F0000", message: "RELOAD failed, see logs for additional details"}
	}
	return "RELOAD", nil
}

func (c *console) set(cmd command) (string, error) {
	set := c.b.config().Admin.Set
	if set == nil {
		return "", unsupported("SET")
	}
	if err := set(cmd.key, cmd.value); err != nil {
		return "", consoleError("SET failed: %s", strings.TrimPrefix(err.Error(), "pgbounce: "))
	}
	return "SET " + cmd.key + "=" + cmd.value, nil
}

// unsupported is the answer where a hook is missing.
func unsupported(verb string) *wireError {
	return &wireError{severity: "ERROR", code: "0A000", message: verb + " is not supported here"}
}

func (c *console) shutdown(cmd command) (string, error) {
	var after string
	var stop func(context.Context) error
	switch strings.ToLower(cmd.arg) {
	case "":
		stop = func(context.Context) error { return c.b.Close() }
	case "wait_for_servers":
		after, stop = "transactions", c.b.Shutdown
	case "wait_for_clients":
		after, stop = "clients", c.b.ShutdownClients
	default:
		return "", errSyntax
	}
	hook := c.b.config().Admin.Stop
	c.then = func() {
		if hook != nil {
			hook(after)
			return
		}
		// It waits for this session, which therefore cannot wait for it.
		go func() { _ = stop(c.b.life) }()
	}
	if after == "" {
		return "", nil // the end of the connection is the answer
	}
	return "SHUTDOWN", nil
}
