package pgbounce_test

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

const copyIn = "copy photo_{n} (id, who, likes) from stdin"

const early = "gives the server back at the first ReadyForQuery, and loses what is behind a copy"

// copyScripts copy, in both protocols and both directions.
var copyScripts = []script{
	{name: "CopyOut", play: func(c *client) { c.do("copy photo_{n} to stdout"); c.do("select '{n}'") }},
	{name: "CopyOutExtended", play: func(c *client) {
		c.batch(list(parse("", "copy photo_{n} to stdout (format csv, header)"), run(""))...)
		c.batch(list(parse("", "copy photo_{n} to stdout (format binary)"), run(""))...)
	}},
	{name: "CopyOutFails", play: func(c *client) {
		c.do("copy (select 100 / (5 - n), '{n}' from generate_series(1, 10) n) to stdout")
		c.do("select '{n}'")
	}},
	{name: "CopyOutLarge", needs: large, play: func(c *client) {
		c.do("copy (select n, repeat('{n}', 100) from generate_series(1, 20000) n) to stdout")
	}},
	{name: "CopyIn", play: func(c *client) {
		c.send(query(copyIn))
		c.until('G')
		c.send(data("11\t{n}\t1\n12\t{"), data("n}\t2\n"), data(""), data("13\t{n}\t3\n"))
		c.send(copyDone)
		c.ready(1)
		c.do("select id, likes from photo_{n} where id > 10 order by id")
	}},
	{name: "CopyInWithoutRows", play: func(c *client) { c.send(query(copyIn), copyDone); c.ready(1); c.do("select '{n}'") }},
	{name: "CopyInLarge", needs: large, play: func(c *client) {
		all := list(query(copyIn))
		for i := range 20_000 {
			all = append(all, data(fmt.Sprintf("%d\t%s\t%d\n", i+100, strings.Repeat("{n}", 30), i)))
		}
		c.send(append(all, copyDone)...)
		c.ready(1)
		c.do("select count(*), sum(likes), md5(string_agg(who, '' order by id)) from photo_{n}")
	}},
	{name: "CopyInOneLargeMessage", needs: large, play: func(c *client) {
		c.send(query(copyIn), data("100\t"+strings.Repeat("{n}x", 1_000_000)+"\t1\n"), copyDone)
		c.ready(1)
		c.do("select length(who), md5(who) from photo_{n} where id = 100")
	}},
	{name: "CopyFail", play: func(c *client) {
		c.send(query(copyIn))
		c.until('G')
		c.send(data("11\t{n}\t1\n"), copyFail("of {n}"))
		c.ready(1)
		c.do("select count(*) from photo_{n}")
	}},
	{name: "CopyInServerFails", play: func(c *client) {
		c.send(query(copyIn))
		c.until('G')
		c.send(data("11\t{n}\t1\n"), data("no number\t{n}\t1\n"))
		c.ready(1)
		// The client has not noticed yet.
		c.send(data("12\t{n}\t1\n"), data("13\t{n}\t1\n"))
		c.send(data("14\t{n}\t1\n"), copyDone)
		c.do("select count(*), '{n}' from photo_{n}")
		c.send(data("15\t{n}\t1\n"), copyFail("late"))
		c.do("select '{n}'")
	}},
	{name: "CopyInServerFailsBlindly", not: map[string]string{"PgBouncer": early}, needs: large, play: func(c *client) {
		all := list(query(copyIn), data("1\ttaken {n}\t1\n"))
		for i := range 5000 {
			all = append(all, data(fmt.Sprintf("%d\t%s\t%d\n", i+100, strings.Repeat("{n}", 100), i)))
		}
		c.send(append(all, copyDone, query("select count(*), '{n}' from photo_{n}"))...)
		c.ready(2)
	}},
	{name: "CopyInSyntaxErrorBlindly", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(query("copy nowhere_{n} from stdin"), data("11\t{n}\t1\n"), copyDone, query("select '{n}'"))
		c.ready(2)
	}},
	{name: "CopyInThenQuery", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(query(copyIn), data("11\t{n}\t1\n"), copyDone, query("select count(*), '{n}' from photo_{n}"),
			query(copyIn), data("12\t{n}\t1\n"), copyFail("no"), query("select count(*), '{n}' from photo_{n}"))
		c.ready(4)
	}},
	{name: "CopyInAmongOthers", play: func(c *client) {
		c.send(query("select '{n}'; " + copyIn + "; select count(*) from photo_{n}; copy photo_{n} to stdout"))
		c.until('G')
		c.send(data("11\t{n}\t1\n"), copyDone)
		c.ready(1)
		c.send(query(copyIn+"; "+copyIn+"; select count(*) from photo_{n}"), data("12\t{n}\t1\n"), copyDone,
			data("13\t{n}\t1\n"), copyDone)
		c.ready(1)
	}},
	{name: "CopyInTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.send(query(copyIn), data("11\t{n}\t1\n"), copyDone)
		c.ready(1)
		c.send(query(copyIn), data("no number\t{n}\t1\n"), copyDone)
		c.ready(1)
		c.do("select '{n}'")
		c.do("rollback")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "CopyInExtended", play: func(c *client) {
		c.send(parse("", copyIn), bind("", ""), describePortal(""), execute(""), flush)
		c.until('G')
		c.send(data("11\t{n}\t1\n"), copyDone, sync)
		c.ready(1)
		c.do("select count(*) from photo_{n}")
	}},
	{name: "CopyInNamed", needs: names, play: func(c *client) {
		c.batch(parse("in", copyIn), parse("out", "copy photo_{n} to stdout"))
		for i := range 3 {
			c.send(bind("", "in"), execute(""), data(fmt.Sprintf("%d\t{n}\t1\n", i+11)), copyDone, sync)
			c.ready(1)
			c.batch(run("out")...)
		}
	}},
	{name: "CopyInExtendedBlindly", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(list(parse("", copyIn), run(""), data("11\t{n}\t1\n"), copyDone, sync,
			parse("", "select count(*), '{n}' from photo_{n}"), run(""), sync)...)
		c.ready(2)
		c.send(list(parse("", copyIn), run(""), data("12\t{n}\t1\n"), copyFail("no {n}"), sync,
			parse("", "select count(*), '{n}' from photo_{n}"), run(""), sync)...)
		c.ready(2)
	}},
	{name: "CopyInExtendedAndMore", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		// Behind the copy, in the same batch and transaction.
		c.send(list(parse("", copyIn), run(""), data("11\t{n}\t1\n"), copyDone,
			parse("", "select count(*), '{n}' from photo_{n}"), run(""), sync)...)
		c.ready(1)
	}},
	{name: "CopyInExtendedServerFails", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(list(parse("", copyIn), run(""), data("no number\t{n}\t1\n"), data("12\t{n}\t1\n"), copyDone, sync,
			parse("", "select count(*), '{n}' from photo_{n}"), run(""), sync)...)
		c.ready(2)
	}},
	{name: "CopyInExtendedParseFails", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(list(parse("", "copy nowhere_{n} from stdin"), run(""), data("11\t{n}\t1\n"), copyDone, sync,
			query("select '{n}'"))...)
		c.ready(2)
	}},
	{name: "SyncDuringCopy", play: func(c *client) {
		// Drivers that always send a Sync: it is ignored while copying.
		c.send(list(parse("", copyIn), run(""), sync)...)
		c.until('G')
		c.send(flush, sync, data("11\t{n}\t1\n"), sync, copyDone, sync)
		c.ready(1)
		c.do("select count(*), '{n}' from photo_{n}")
	}},
	{name: "SyncDuringSimpleCopy", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		c.send(query(copyIn), sync, flush, data("11\t{n}\t1\n"), sync, copyDone, query("select count(*), '{n}' from photo_{n}"))
		c.ready(2)
	}},
	{name: "QueryDuringCopy", not: map[string]string{"PgBouncer": crashed}, needs: own, play: func(c *client) {
		c.send(query(copyIn))
		c.until('G')
		c.send(data("11\t{n}\t1\n"), query("select 'instead of data'"))
		c.end()
		c.another("second").do("select count(*), '{n}' from photo_{n}")
	}},
	{name: "CopyMessagesWithoutCopy", play: func(c *client) {
		c.send(data("11\t{n}\t1\n"), copyDone, copyFail("none"), query("select '{n}'"))
		c.ready(1)
		c.send(list(parse("", "select '{n}'"), data("11\t{n}\t1\n"), run(""), copyDone, sync)...)
		c.ready(1)
	}},
	{name: "CopyBothWays", not: map[string]string{"PgBouncer": early}, play: func(c *client) {
		for range 3 {
			var all []pgproto3.FrontendMessage
			all = append(all, query("copy photo_{n} to stdout"), query("delete from photo_{n} where id > 10"),
				query(copyIn), data("11\t{n}\t1\n"), copyDone, query("copy photo_{n} to stdout"))
			c.send(all...)
			c.ready(4)
		}
	}},
}
