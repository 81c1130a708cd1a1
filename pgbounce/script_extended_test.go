package pgbounce_test

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// oneLike is a statement with a parameter and a nonce in its rows.
const oneLike = "select id, who, likes from photo_{n} where id = $1"

// extendedScripts use the extended protocol.
var extendedScripts = []script{
	{name: "Unnamed", play: func(c *client) { c.batch(list(parse("", oneLike), run("", "3"))...) }},
	{name: "Named", needs: names, play: func(c *client) { c.batch(list(parse("s", oneLike), run("s", "3"))...) }},
	{name: "NamedPortal", needs: names, play: func(c *client) {
		c.batch(parse("s", oneLike), describeStatement("s"), bind("p", "s", "3"), describePortal("p"), execute("p"),
			bind("q", "s", "4"), execute("q"), closePortal("p"), closePortal("q"), closeStatement("s"))
	}},
	{name: "WithoutDescribe", play: func(c *client) { c.batch(parse("", oneLike), bind("", "", "3"), execute("")) }},
	{name: "FlushAfterEach", play: func(c *client) {
		c.send(parse("", oneLike), flush)
		c.read(1)
		c.send(describeStatement(""), flush)
		c.read(2)
		c.send(bind("", "", "3"), flush)
		c.read(1)
		c.send(describePortal(""), flush)
		c.read(1)
		c.send(execute(""), flush)
		c.read(2)
		c.send(sync)
		c.ready(1)
	}},
	{name: "FlushAndSyncTogether", play: func(c *client) {
		c.send(list(parse("", oneLike), run("", "3"), flush, sync, flush, query("select '{n}'"))...)
		c.ready(2)
	}},
	{name: "FlushAlone", play: func(c *client) { c.send(flush, flush); c.batch(); c.send(flush); c.do("select '{n}'") }},
	{name: "SyncAlone", play: func(c *client) { c.batch(); c.send(sync, sync, sync); c.ready(3) }},
	{name: "NamedInTwoTransactions", needs: names, play: func(c *client) {
		c.batch(parse("s", oneLike), describeStatement("s"))
		c.batch(run("s", "3")...)
		c.batch(describeStatement("s"))
		c.batch(run("s", "4")...)
	}},
	{name: "UnnamedInTwoTransactions", needs: names, play: func(c *client) {
		c.batch(parse("", oneLike), describeStatement(""))
		c.batch(run("", "3")...)
		c.batch(describeStatement(""))
		c.batch(run("", "4")...)
		c.batch(parse("", "select '{n}', $1::int * 2"))
		c.batch(run("", "5")...)
	}},
	{name: "NamedAndUnnamedInTurn", needs: names, play: func(c *client) {
		c.batch(parse("s", oneLike), parse("", "select '{n}', $1::text"))
		for i := range 6 {
			c.batch(run("s", fmt.Sprint(i+1))...)
			c.batch(run("", "x{n}")...)
		}
	}},
	{name: "ParameterTypes", needs: names, play: func(c *client) {
		// The same text is another statement if its parameter has another type.
		c.batch(parse("a", "select $1, '{n}'", 23), parse("b", "select $1, '{n}'", 25), parse("c", "select $1, '{n}'"))
		c.batch(describeStatement("a"), describeStatement("b"), describeStatement("c"))
		c.batch(list(run("a", "7"), run("b", "x"), run("c", "y"))...)
		c.batch(run("a", "x")...)
	}},
	{name: "SameTextTwoNames", needs: names, play: func(c *client) {
		c.batch(list(parse("a", oneLike), parse("b", oneLike), run("a", "1"), run("b", "2"), closeStatement("a"), run("b", "3"))...)
		c.batch(run("b", "4")...)
		c.batch(run("a", "5")...)
		c.batch(list(parse("a", oneLike), run("a", "6"))...)
	}},
	{name: "LongName", needs: names, play: func(c *client) {
		name := strings.Repeat("long name, ", 100)
		c.batch(list(parse(name, oneLike), run(name, "3"))...)
		c.batch(run(name, "4")...)
	}},
	{name: "NameLikeThePoolers", needs: names, play: func(c *client) {
		c.batch(list(parse("PGBOUNCE_1", oneLike), parse("PGBOUNCER_1", oneLike), run("PGBOUNCE_1", "3"))...)
		c.batch(run("PGBOUNCER_1", "4")...)
		c.batch(run("PGBOUNCE_2", "5")...)
	}},
	{name: "CloseThenBind", needs: names | own, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.batch(closeStatement("s"))
		c.batch(run("s", "3")...)
		c.batch(list(parse("s", "select '{n}', $1::int"), run("s", "4"), closeStatement("s"), run("s", "5"))...)
	}},
	{name: "CloseUnknown", play: func(c *client) {
		c.batch(closeStatement("none"), closePortal("none"), closeStatement(""), closePortal(""))
		c.do("select '{n}'")
	}},
	{name: "CloseUnnamed", needs: names | own, play: func(c *client) {
		c.batch(parse("", oneLike), closeStatement(""))
		c.batch(run("", "3")...)
	}},
	{name: "TakenName", needs: names | own, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.batch(parse("s", "select 'other {n}'"))
		c.batch(parse("s", oneLike))
		c.batch(run("s", "3")...)
	}},
	{name: "TakenNameInTransaction", needs: block | names | own, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.do("begin")
		c.batch(parse("s", "select 'other {n}'"))
		c.batch(run("s", "3")...)
		c.do("rollback")
		c.batch(run("s", "4")...)
	}},
	{name: "TakenNameInPipeline", needs: names | own, play: func(c *client) {
		c.batch(list(
			parse("s", "insert into photo_{n} (id) values ($1::int) returning who"), run("s", "11"),
			parse("s", "select 'other {n}'"), run("s", "12"), parse("t", "select '{n}'"), run("t"),
		)...)
		c.do("select count(*) from photo_{n}")
		c.batch(run("t")...)
		c.batch(run("s", "13")...)
		c.do("select count(*) from photo_{n}")
	}},
	{name: "TakenNameTwoBatches", needs: names | own, play: func(c *client) {
		c.send(list(parse("s", oneLike), run("s", "1"), sync, parse("s", oneLike), run("s", "2"), sync, run("s", "3"), sync)...)
		c.ready(3)
	}},
	{name: "UnknownName", needs: own, play: func(c *client) {
		c.batch(run("none", "3")...)
		c.batch(describeStatement("none"))
		c.batch(describePortal("none"))
		c.batch(execute("none"))
	}},
	{name: "UnknownNameInTransaction", needs: block | own, play: func(c *client) {
		c.do("begin; insert into photo_{n} (id) values (11)")
		c.batch(run("none", "3")...)
		c.do("commit")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "UnknownNameInPipeline", needs: names | own, play: func(c *client) {
		c.batch(list(parse("a", "insert into photo_{n} (id) values ($1::int)"), run("a", "11"), run("none"), run("a", "12"),
			parse("b", "select '{n}'"))...)
		c.do("select count(*) from photo_{n}")
		c.batch(run("a", "13")...)
		c.batch(run("b")...)
	}},
	{name: "UnnamedMissing", needs: own, play: func(c *client) {
		c.batch(run("")...)
		c.batch(describeStatement(""))
		c.do("select '{n}'")
	}},
	{name: "UnnamedLostByQuery", needs: names | own, play: func(c *client) {
		c.batch(parse("", oneLike))
		c.do("select '{n}'")
		c.batch(run("", "3")...)
	}},
	{name: "UnnamedLostByFailedParse", needs: names | own, play: func(c *client) {
		c.batch(parse("", oneLike))
		c.batch(parse("", "selec '{n}'"))
		c.batch(run("", "3")...)
	}},
	{name: "UnnamedKeptByFailure", needs: names, play: func(c *client) {
		c.batch(parse("", oneLike))
		c.batch(run("", "no number")...)
		c.batch(run("", "3")...)
	}},
	{name: "Suspended", play: func(c *client) {
		c.send(parse("", "select id, who from photo_{n} order by id"), bind("", ""), execute("", 3), flush)
		c.read(6)
		c.send(execute("", 5), flush)
		c.read(6)
		c.send(execute("", 5), execute("", 5), sync)
		c.ready(1)
	}},
	{name: "SuspendedPortalDiesAtSync", needs: own, play: func(c *client) {
		c.batch(parse("", "select id, who from photo_{n} order by id"), bind("p", ""), execute("p", 3))
		c.batch(execute("p", 3))
	}},
	{name: "SuspendedInTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.batch(parse("", "select id, who from photo_{n} order by id"), bind("p", ""), execute("p", 3))
		c.batch(execute("p", 3))
		c.do("select '{n}'")
		c.batch(execute("p"), closePortal("p"))
		c.do("commit")
	}},
	{name: "TakenPortal", needs: block, play: func(c *client) {
		c.do("begin")
		c.batch(parse("", "select '{n}'"), bind("p", ""), bind("p", ""))
		c.do("rollback")
	}},
	{name: "ExecuteTwice", play: func(c *client) {
		c.batch(parse("", "select '{n}' from generate_series(1, 2)"), bind("", ""), execute(""), execute(""))
	}},
	{name: "ImplicitTransaction", play: func(c *client) {
		add := "insert into photo_{n} (id) values ($1)"
		c.batch(list(parse("", add), run("", "11"), run("", "12"), run("", "1"), run("", "13"))...)
		c.do("select count(*) from photo_{n}")
		c.send(list(parse("", add), run("", "11"), sync, run("", "1"), sync, run("", "12"), sync)...)
		c.ready(3)
		c.do("select count(*) from photo_{n}")
	}},
	{name: "ErrorBetweenSyncs", needs: names, play: func(c *client) {
		c.send(list(parse("a", oneLike), run("a", "1"), sync,
			parse("b", "select 1 / $1::int, '{n}'"), run("b", "0"), run("a", "2"), sync,
			run("a", "3"), run("b", "1"), sync)...)
		c.ready(3)
	}},
	{name: "ErrorThenNames", needs: names | own, play: func(c *client) {
		c.batch(list(parse("known", oneLike), run("known", "1"), parse("", "select 1 / 0"), run(""),
			parse("new", oneLike), parse("other", "select '{n}', 7"), run("known", "2"), closeStatement("known"))...)
		c.batch(run("new", "3")...)
		c.batch(list(parse("new", oneLike), run("new", "4"))...)
		c.batch(run("other")...)
		c.batch(run("known", "5")...)
		c.batch(list(parse("other", "select '{n}', 8"), run("other"))...)
	}},
	{name: "ErrorThenNamesInNextBatch", needs: names | own, play: func(c *client) {
		c.send(list(parse("bad", "selec"), parse("a", oneLike), sync, run("a", "1"), sync,
			parse("a", "select '{n}', $1::int"), run("a", "2"), sync, run("a", "3"), sync)...)
		c.ready(4)
	}},
	{name: "FailedParse", needs: names | own, play: func(c *client) {
		c.batch(parse("s", "selec '{n}'"))
		c.batch(run("s")...)
		c.batch(describeStatement("s"))
		c.batch(list(parse("s", "select '{n}'"), run("s"))...)
		c.batch(run("s")...)
	}},
	{name: "FailedParseOfUnknownType", play: func(c *client) { c.batch(parse("s", "select $1", 1)); c.do("select '{n}'") }},
	{name: "ParseSurvivesRollback", needs: block | names, play: func(c *client) {
		c.do("begin")
		c.batch(parse("s", oneLike))
		c.do("select 1 / 0")
		c.do("rollback")
		c.batch(run("s", "3")...)
	}},
	{name: "ParseInFailedTransaction", needs: block | names | own, play: func(c *client) {
		c.batch(parse("old", oneLike))
		c.do("begin")
		c.do("select 1 / 0")
		c.batch(parse("s", oneLike))
		c.batch(run("old", "1")...)
		c.batch(describeStatement("old"))
		c.batch(parse("r", "rollback"))
		c.batch(run("r")...)
		c.batch(run("s", "1")...)
		c.batch(list(parse("s", oneLike), run("s", "3"))...)
		c.batch(run("old", "2")...)
	}},
	{name: "QueryInFailedPipeline", play: func(c *client) {
		c.send(parse("", "selec"), flush, query("select 'swallowed'"))
		c.read(1)
		c.send(query("select 'swallowed, too'"), sync, query("select '{n}'"))
		c.ready(2)
	}},
	{name: "QueryBehindPipeline", play: func(c *client) {
		c.send(list(parse("", oneLike), run("", "3"), query("select '{n}'"), sync)...)
		c.ready(2)
	}},
	{name: "FlushThenError", play: func(c *client) {
		c.send(list(parse("", oneLike), run("", "3"), flush)...)
		c.until('C')
		c.send(list(bind("", "", "no number"), flush)...)
		c.until('E')
		c.send(list(run("", "4"), flush, run("", "5"), sync)...)
		c.ready(1)
		c.do("select '{n}'")
	}},
	{name: "BindErrors", needs: names, play: func(c *client) {
		c.batch(list(parse("s", oneLike), run("s"))...)
		c.batch(run("s", "1", "2")...)
		c.batch(run("s", "no number")...)
		c.batch(&pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{{1, 2, 3}}, ParameterFormatCodes: []int16{1}})
		c.batch(&pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{[]byte("1")}, ResultFormatCodes: []int16{0, 1}})
		c.batch(run("s", "3")...)
	}},
	{name: "BinaryFormat", play: func(c *client) {
		c.batch(parse("", oneLike),
			&pgproto3.Bind{Parameters: [][]byte{{0, 0, 0, 3}}, ParameterFormatCodes: []int16{1}, ResultFormatCodes: []int16{1, 0, 1}},
			describePortal(""), execute(""))
	}},
	{name: "NullsAndEmpty", play: func(c *client) {
		c.batch(list(parse("", "select $1::text, $2::text, $3::text"), run("", nil, "", "{n}"))...)
		c.batch(list(parse("", ""), run(""))...)
		c.batch(list(parse("", "select"), run(""))...)
	}},
	{name: "ThousandParameters", needs: large, play: func(c *client) {
		args, marks := make([]any, 1000), make([]string, 1000)
		for i := range args {
			args[i], marks[i] = fmt.Sprint(i), fmt.Sprintf("$%d::int", i+1)
		}
		c.batch(list(parse("", "select '{n}', "+strings.Join(marks, "+")), run("", args...))...)
	}},
	{name: "BigParameter", needs: large, play: func(c *client) {
		big := strings.Repeat("{n}x", 1_250_000)
		c.batch(list(parse("", "select length($1::text), md5($1), $1"), run("", big))...)
		c.do("select '{n}'")
	}},
	{name: "BigParse", needs: large | names, play: func(c *client) {
		c.batch(parse("s", "select $1::int, '{n}' /* "+strings.Repeat("{n}x", 100_000)+" */"))
		c.batch(run("s", "3")...)
		c.batch(run("s", "4")...)
	}},
	{name: "ThousandInOneBatch", needs: large | names, play: func(c *client) {
		all := list(parse("s", "select $1::int, '{n}'"))
		for i := range 1000 {
			all = append(all, run("s", fmt.Sprint(i))...)
		}
		c.batch(all...)
	}},
	{name: "ThousandBatches", needs: large | names, play: func(c *client) {
		all := list(parse("s", "select 100 / ($1::int % 250), '{n}'"))
		for i := range 1000 {
			all = append(all, list(run("s", fmt.Sprint(i+1)), sync)...)
		}
		c.send(all...)
		c.ready(1000)
	}},
	{name: "ManyStatementsInOneBatch", needs: names, play: func(c *client) {
		// More than the server may keep, each used again behind the others.
		var all []pgproto3.FrontendMessage
		for i := range 6 {
			all = append(all, parse(fmt.Sprint("s", i), fmt.Sprintf("select %d, $1::int, '{n}'", i)))
		}
		for range 2 {
			for i := range 6 {
				all = append(all, run(fmt.Sprint("s", i), "1")...)
			}
		}
		c.batch(all...)
		for i := range 6 {
			c.batch(list(run(fmt.Sprint("s", 5-i), "2"), describeStatement(fmt.Sprint("s", i)))...)
		}
	}},
	{name: "ManyStatementsAndAnError", needs: names | own, play: func(c *client) {
		for i := range 5 {
			c.batch(parse(fmt.Sprint("s", i), fmt.Sprintf("select %d / $1::int, '{n}'", i)))
		}
		c.send(list(run("s0", "1"), run("s1", "0"), run("s2", "1"), run("s3", "1"), run("s4", "1"),
			parse("s5", "select '{n}'"), sync, run("s5"), sync, run("s4", "1"), run("s2", "1"), sync)...)
		c.ready(3)
		for i := range 5 {
			c.batch(run(fmt.Sprint("s", i), "3")...)
		}
	}},
	{name: "ManyUnnamed", needs: names, play: func(c *client) {
		for i := range 8 {
			c.batch(parse("", fmt.Sprintf("select %d, '{n}', $1::int", i%3)), describeStatement(""))
			c.batch(run("", "5")...)
		}
	}},
	{name: "MixedTransaction", needs: block | names, play: func(c *client) {
		c.batch(parse("s", "update photo_{n} set likes = likes + 1 where id = $1 returning likes, who"))
		for range 2 {
			c.do("begin")
			c.batch(run("s", "1")...)
			c.do("select likes from photo_{n} where id = 1")
			c.batch(list(parse("t", oneLike), run("t", "1"), closeStatement("t"))...)
			c.do("commit")
		}
		c.batch(run("s", "1")...)
	}},
	{name: "ExtendedTransaction", needs: block, play: func(c *client) {
		c.batch(list(parse("", "begin"), run(""), parse("", "insert into photo_{n} (id) values (11)"), run(""))...)
		c.batch(list(parse("", "select count(*) from photo_{n}"), run(""), parse("", "rollback"), run(""),
			parse("", "select count(*) from photo_{n}"), run(""))...)
		c.send(list(parse("", "begin"), run(""), sync, parse("", "select '{n}'"), run(""), sync, parse("", "commit"), run(""), sync)...)
		c.ready(3)
	}},
	{name: "ErrorInExtendedTransaction", needs: block, play: func(c *client) {
		c.send(list(parse("", "begin"), run(""), sync, parse("", "select 1 / 0"), run(""), sync,
			parse("", "select '{n}'"), run(""), sync, parse("", "rollback"), run(""), sync)...)
		c.ready(4)
	}},
	{name: "DeallocateAll", needs: names | own, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.do("deallocate all")
		c.batch(run("s", "3")...)
		c.batch(list(parse("s", oneLike), run("s", "4"))...)
		c.batch(list(parse("", "deallocate all"), run(""))...)
		c.batch(run("s", "5")...)
	}},
	{name: "DiscardAll", needs: names | own, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.do("discard all")
		c.batch(run("s", "3")...)
		c.batch(list(parse("s", oneLike), run("s", "4"))...)
	}},
	{
		name: "DeallocateOne", needs: names | own | session, play: func(c *client) {
			c.batch(parse("s", oneLike))
			c.do("deallocate s")
			c.batch(run("s", "3")...)
		},
	},
	{name: "ExecuteInSQL", needs: names | session, play: func(c *client) {
		c.batch(parse("s", oneLike))
		c.do("execute s (3)")
		c.do("prepare t as select '{n}'")
		c.batch(run("t")...)
	}},
	{name: "ChangedResultType", needs: names | still, play: func(c *client) {
		c.batch(list(parse("s", "select * from changing_{n}"), run("s"))...)
		c.do("alter table changing_{n} alter likes type bigint")
		c.batch(run("s")...)
		c.batch(list(closeStatement("s"), parse("s", "select * from changing_{n}"), run("s"))...)
		c.batch(run("s")...)
	}},
	{name: "ChangedResultTypeInTransaction", needs: block | names | still | own, play: func(c *client) {
		// Of the same text, a pooler may have a statement from before.
		const other = "select *, 1 from changing_{n}"
		c.batch(list(parse("s", other), run("s"))...)
		c.do("alter table changing_{n} alter likes type bigint")
		c.do("begin")
		c.batch(run("s")...)
		c.batch(run("s")...)
		c.do("rollback")
		c.batch(list(closeStatement("s"), parse("s", other), run("s"))...)
	}},
	{name: "BadDescribeKind", play: func(c *client) {
		c.raw([]byte{'D', 0, 0, 0, 6, 'x', 0})
		c.batch()
		c.raw([]byte{'C', 0, 0, 0, 6, 'x', 0})
		c.batch()
		c.do("select '{n}'")
	}},
}
