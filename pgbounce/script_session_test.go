package pgbounce_test

import (
	"encoding/binary"
	"slices"
	"strings"
)

// The codes of the requests that come before a login.
const (
	sslRequest = 80877103
	gssRequest = 80877104
)

const (
	asWritten = "reports parameters as the client wrote them, until a server has"
	version32 = "speaks 3.2 itself: see TestProtocolVersions"
)

const crashed = "adds an error of its own to the server's last"

// sessionScripts are about what belongs to a session: its parameters, its
// begin and its end.
var sessionScripts = []script{
	{name: "SetIsKept", play: func(c *client) {
		c.do("set datestyle = 'iso, dmy'")
		c.do("set timezone = 'Asia/Tokyo'")
		c.do("set application_name = 'of {n}'")
		c.do("set intervalstyle = 'iso_8601'")
		c.do("set standard_conforming_strings = off")
		c.do("select date '6.10.2010', timestamptz '2010-10-06 00:00Z', interval '1 day', current_setting('application_name'), '\\x41'")
		c.batch(list(parse("", "select date '6.10.2010', timestamptz '2010-10-06 00:00Z', current_setting('application_name')"), run(""))...)
		c.do("select date '6.10.2010', timestamptz '2010-10-06 00:00Z'")
	}},
	{name: "SetIsCanonical", play: func(c *client) {
		c.do("set datestyle = 'iso'")
		c.do("show datestyle")
		c.do("set datestyle = 'GERMAN'")
		c.do("show datestyle")
		c.do("set timezone = 'utc'")
		c.do("show timezone")
		c.do("show timezone")
	}},
	{name: "SetWithQuotes", play: func(c *client) {
		c.do(`set application_name = 'a ''quoted'' \ "{n}"'`)
		c.do("show application_name")
		c.do("show application_name")
	}},
	{name: "SetEmpty", play: func(c *client) {
		c.do("set application_name = 'x{n}'")
		c.do("set application_name = ''")
		c.do("show application_name")
		c.do("show application_name")
	}},
	{name: "SetWithFunction", play: func(c *client) {
		c.do("select set_config('application_name', 'by function {n}', false)")
		c.batch(list(parse("", "select set_config('timezone', $1, false)"), run("", "Europe/Berlin"))...)
		c.do("select current_setting('application_name'), current_setting('timezone')")
		c.do("select current_setting('application_name'), current_setting('timezone')")
	}},
	{name: "SetOfUnknownZone", play: func(c *client) { c.do("set timezone = 'Nowhere/{n}'"); c.do("show timezone") }},
	{name: "SetLocal", needs: block, play: func(c *client) {
		c.do("begin; set local timezone = 'Asia/Tokyo'")
		c.do("show timezone")
		c.do("commit")
		c.do("show timezone")
	}},
	{name: "SetRolledBack", needs: block, play: func(c *client) {
		c.do("set timezone = 'Asia/Tokyo'")
		c.do("begin")
		c.do("set timezone = 'Europe/Berlin'")
		c.do("rollback")
		c.do("show timezone")
		c.do("show timezone")
	}},
	{name: "Encoding", play: func(c *client) {
		c.do("set client_encoding = 'latin1'")
		c.do("select '\xe9'")
		c.do("select U&'\\00e9', '{n}'")
		c.do("reset client_encoding")
		c.do("select U&'\\00e9', '{n}'")
	}},
	{name: "ResetAfterSet", not: map[string]string{"PgBouncer": "reports what has not changed"}, play: func(c *client) {
		c.do("set timezone = 'Asia/Tokyo'")
		c.do("reset timezone")
		c.do("show timezone")
		c.do("show timezone")
		c.do("set timezone = 'Asia/Tokyo'; set application_name = '{n}'")
		c.do("reset all")
		c.do("show timezone; show application_name")
		c.do("show timezone; show application_name")
	}},
	{
		name: "ResetToStartup", needs: bare,
		not: map[string]string{
			"PgBouncer": "RESET goes to the server's default, as the client's startup parameters are set by SET",
			"pgbounce":  "RESET goes to the server's default, as servers are shared by clients",
		},
		play: func(c *client) {
			c.login("TimeZone", "Asia/Tokyo")
			c.do("set timezone = 'Europe/Berlin'")
			c.do("reset timezone")
			c.do("show timezone")
		},
	},
	{name: "TwoClientsDiffer", play: func(c *client) {
		d := c.another("second", "TimeZone", "Europe/Berlin", "DateStyle", "SQL, DMY")
		c.do("set timezone = 'Asia/Tokyo'; set application_name = 'first {n}'")
		d.do("set application_name = 'second {n}'")
		for range 3 {
			c.do("select timestamptz '2010-10-06 00:00Z', current_setting('application_name')")
			d.do("select timestamptz '2010-10-06 00:00Z', current_setting('application_name')")
		}
	}},
	{name: "TwoClientsPrepare", needs: names, play: func(c *client) {
		d := c.another("second")
		c.batch(parse("s", oneLike), parse("", "select 'first {n}'"))
		d.batch(parse("s", "select 'second {n}', $1::int"), parse("", "select 'second {n}'"))
		for range 3 {
			c.batch(run("s", "3")...)
			d.batch(run("s", "3")...)
			c.batch(run("")...)
			d.batch(run("")...)
		}
		c.batch(closeStatement("s"))
		d.batch(run("s", "4")...)
	}},
	{name: "AbandonedTransaction", needs: block, play: func(c *client) {
		d := c.another("second")
		d.do("begin; insert into photo_{n} (id) values (11)")
		d.hangUp()
		// Waits for the lock of the abandoned row, if it is still there.
		c.do("insert into photo_{n} (id) values (11)")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "AbandonedQuery", play: func(c *client) {
		d := c.another("second")
		d.send(query("select '{n}', repeat('{n}', 100000) from generate_series(1, 100)"))
		d.hangUp()
		c.do("select '{n}'")
	}},
	{name: "AbandonedMessage", play: func(c *client) {
		d := c.another("second")
		d.raw([]byte("Q\x00\x00\x01\x00select 'half a"))
		d.hangUp()
		c.do("select '{n}'")
	}},
	{name: "AbandonedBatch", needs: names, play: func(c *client) {
		d := c.another("second")
		d.send(list(parse("s", oneLike), run("s", "1"), flush)...)
		d.until('C')
		d.hangUp()
		c.batch(list(parse("s", "select '{n}'"), run("s"))...)
	}},
	{name: "AbandonedCopy", play: func(c *client) {
		d := c.another("second")
		d.send(query(copyIn), data("11\t{n}\t1\n"))
		d.until('G')
		d.hangUp()
		c.do("insert into photo_{n} (id) values (11)")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "Notification", needs: session, play: func(c *client) {
		d := c.another("second")
		c.do("listen news_{n}")
		d.do("notify news_{n}, 'of {n}'")
		c.until('A')
		d.do("begin; notify news_{n}, '1'; notify news_{n}, '2'; notify news_{n}, '1'; commit")
		c.until('A')
		c.until('A')
		c.do("notify news_{n}, 'own'")
		c.do("unlisten *")
		d.do("notify news_{n}, 'unheard'")
		c.do("select '{n}'")
	}},
	{name: "SetOfAnything", needs: session, play: func(c *client) {
		c.do("set work_mem = '1234kB'; set my.own = '{n}'")
		c.do("show work_mem; show my.own")
		c.do("create temporary table scratch (a text); insert into scratch values ('{n}')")
		c.do("select a || 'x' from scratch")
		c.do("select pg_advisory_lock(hashtext('{n}')); select pg_advisory_unlock(hashtext('{n}'))")
		c.do("begin; declare list cursor with hold for select id, who from photo_{n} order by id; commit")
		c.do("fetch 2 from list")
		c.do("discard all")
	}},
	{name: "Terminated", not: map[string]string{"PgBouncer": crashed}, needs: own, play: func(c *client) {
		c.do("select '{n}'")
		c.send(query("select '{n}', pg_terminate_backend(pg_backend_pid())"))
		c.end()
	}},
	{name: "TerminatedInTransaction", not: map[string]string{"PgBouncer": crashed}, needs: block | own, play: func(c *client) {
		c.do("begin; insert into photo_{n} (id) values (11)")
		c.send(query("select '{n}', pg_terminate_backend(pg_backend_pid())"))
		c.end()
		c.another("second").do("select count(*) from photo_{n}")
	}},

	// What is wrong on the wire.
	{name: "UnknownMessage", play: func(c *client) { c.raw([]byte{'z', 0, 0, 0, 4}); c.refused() }},
	{name: "UnknownMessageInTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.raw([]byte{'z', 0, 0, 0, 4})
		c.refused()
	}},
	{name: "LengthTooSmall", play: func(c *client) { c.raw([]byte{'Q', 0, 0, 0, 3}); c.refused() }},
	{name: "LengthNegative", play: func(c *client) { c.raw([]byte{'Q', 255, 255, 255, 255}); c.refused() }},
	{name: "LengthOfSyncTooLarge", play: func(c *client) { c.raw([]byte{'S', 127, 255, 255, 255}); c.refused() }},
	{name: "UnendedQuery", needs: own, play: func(c *client) {
		c.raw([]byte("Q\x00\x00\x00\x0cselect 1"))
		c.ready(1)
		c.do("select '{n}'")
	}},
	{name: "UnendedParse", needs: own, play: func(c *client) {
		c.raw([]byte("P\x00\x00\x00\x0cselect 1"))
		c.batch()
		c.do("select '{n}'")
	}},
	{name: "UnendedBind", needs: own, play: func(c *client) {
		c.batch(parse("", "select '{n}'"))
		c.raw([]byte("B\x00\x00\x00\x08\x00\x00\x00\x00"))
		c.batch()
		c.raw([]byte("B\x00\x00\x00\x0a\x00s\x00\x00\x00\x00"))
		c.batch()
		c.do("select '{n}'")
	}},
	{name: "UnendedNames", needs: own, play: func(c *client) {
		for _, kind := range "DCE" {
			c.raw([]byte{byte(kind), 0, 0, 0, 7, 'S', 'a', 'b'})
			c.batch()
		}
		c.do("select '{n}'")
	}},

	// How a session begins.
	{name: "StartupInOtherWords", not: map[string]string{"PgBouncer": asWritten, "pgbounce": asWritten}, needs: bare, play: func(c *client) {
		c.login("client_encoding", "latin1", "DateStyle", "german")
		c.do("select timestamptz '2010-10-06 00:00Z', current_setting('client_encoding')")
	}},
	{name: "Startup", needs: bare, play: func(c *client) {
		c.login("application_name", "of {n}", "client_encoding", "LATIN1", "DateStyle", "German, DMY", "TimeZone", "Asia/Tokyo")
		c.do("select timestamptz '2010-10-06 00:00Z', current_setting('application_name'), current_setting('client_encoding')")
		c.do("select timestamptz '2010-10-06 00:00Z', current_setting('application_name'), current_setting('client_encoding')")
	}},
	{name: "StartupOptions", not: map[string]string{"PgBouncer": "1.18 does not read options"}, needs: bare, play: func(c *client) {
		c.login("options", `-c datestyle=SQL,\ DMY --application_name=a\ name -c timezone=Asia/Tokyo`)
		c.do("select timestamptz '2010-10-06 00:00Z', current_setting('application_name')")
	}},
	{name: "EncryptionRefused", needs: bare, play: func(c *client) {
		c.dial()
		c.request(sslRequest)
		c.refusedGSS()
		c.finish()
	}},
	{name: "EncryptionRefusedOtherOrder", needs: bare, play: func(c *client) {
		c.dial()
		c.refusedGSS()
		c.request(sslRequest)
		c.finish()
	}},
	{name: "EncryptionAskedTwice", not: map[string]string{"PgBouncer": "answers again"}, needs: bare, play: func(c *client) {
		c.dial()
		c.request(sslRequest)
		c.packet(binary.BigEndian.AppendUint32(nil, sslRequest))
		c.refused()
	}},
	{name: "Protocol32", not: map[string]string{"PgBouncer": "1.18 does not negotiate versions", "pgbounce": version32}, needs: bare, play: func(c *client) { c.version(3<<16 | 2) }},
	{name: "ProtocolGrease", not: map[string]string{"PgBouncer": "1.18 does not negotiate versions", "pgbounce": version32}, needs: bare, play: func(c *client) {
		c.version(3<<16|9999, "_pq_.test_protocol_negotiation", "", "_pq_.more", "1")
	}},
	{name: "ProtocolOption", not: map[string]string{"PgBouncer": "1.18 does not negotiate versions"}, needs: bare, play: func(c *client) { c.version(protocol30, "_pq_.unknown", "1") }},
	{name: "Protocol20", needs: bare, play: func(c *client) { c.dial(); c.startup(2<<16, "user", "postgres"); c.letter() }},
	{name: "UnknownDatabase", needs: bare, play: func(c *client) {
		c.dial()
		c.startup(protocol30, "user", "postgres", "database", "none_{n}")
		c.refused()
	}},
	{name: "UnknownUser", not: map[string]string{"PgBouncer": "maps every user to one here"}, needs: bare, play: func(c *client) {
		c.dial()
		c.startup(protocol30, "user", "nobody", "database", c.player.route.database)
		c.refused()
	}},
	{name: "UnknownParameter", needs: bare, play: func(c *client) {
		c.dial()
		c.startup(protocol30, "user", "postgres", "database", c.player.route.database, "no_such", "1")
		c.refused()
	}},
	{name: "NoUser", needs: bare, play: func(c *client) {
		c.dial()
		c.startup(protocol30, "database", c.player.route.database)
		c.refused()
	}},
	{name: "StartupTooShort", not: map[string]string{"PgBouncer": "waits for more"}, needs: bare, play: func(c *client) { c.dial(); c.raw([]byte{0, 0, 0, 4}); c.refused() }},
	{name: "StartupTooLong", needs: bare, play: func(c *client) { c.dial(); c.raw([]byte{0, 0, 0x40, 0, 0, 3, 0, 0}); c.refused() }},
	{name: "StartupUnended", not: map[string]string{"PgBouncer": "lets it in"}, needs: bare, play: func(c *client) {
		c.dial()
		c.packet([]byte("\x00\x03\x00\x00user\x00postgres\x00xy"))
		c.refused()
	}},
	{name: "StartupAbandoned", needs: bare, play: func(c *client) {
		c.dial()
		c.raw([]byte{0, 0, 0, 50, 0, 3})
		c.hangUp()
		c.another("second").do("select '{n}'")
	}},
}

// refused reads up to the end. How a refusal is worded is anybody's own
// business, but nothing else must be said.
func (c *client) refused() {
	first := len(*c.said)
	c.end()
	kept := slices.DeleteFunc((*c.said)[first:], func(line string) bool {
		return strings.HasPrefix(line, c.label+`E "SFATAL`) || strings.HasPrefix(line, c.label+"R ")
	})
	*c.said = (*c.said)[:first+len(kept)]
}

// request asks for encryption and reads the answer.
func (c *client) request(code uint32) {
	c.packet(binary.BigEndian.AppendUint32(nil, code))
	c.letter()
}

// refusedGSS asks for encryption by GSSAPI, which a pooler must refuse.
// PostgreSQL may agree, depending on how it was built, so it is not asked.
func (c *client) refusedGSS() {
	if c.player.route.kind == "" {
		c.say("letter 'N'")
		return
	}
	c.request(gssRequest)
}

// version is a login in a version of the protocol.
func (c *client) version(v uint32, pairs ...string) {
	c.dial()
	c.startup(v, append([]string{"user", "postgres", "database", c.player.route.database}, pairs...)...)
	c.welcome()
	c.do("select '{n}'")
}

// finish is the rest of a login after requests for encryption.
func (c *client) finish() {
	c.startup(protocol30, "user", "postgres", "database", c.player.route.database)
	c.welcome()
	c.do("select '{n}'")
}
