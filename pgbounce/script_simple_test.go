package pgbounce_test

import (
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
)

// simpleScripts use the simple protocol, function calls and cancels.
var simpleScripts = []script{
	{name: "Select", play: func(c *client) { c.do("select id, who, likes from photo_{n} order by id") }},
	{name: "Empty", play: func(c *client) { c.do(""); c.do("   ;  ") }},
	{name: "NoColumns", play: func(c *client) { c.do("select from generate_series(1, 3)") }},
	{name: "Nulls", play: func(c *client) {
		c.do("select null, '', '{n}'::bytea, array[1, null], 1.5::numeric, true, '{\"a\": 1}'::jsonb")
	}},
	{name: "Several", play: func(c *client) {
		c.do("select 1; select '{n}'; insert into photo_{n} values (11, '{n}', 5) returning *; update photo_{n} set likes = 1; delete from photo_{n}")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "ErrorInTheMiddle", play: func(c *client) {
		c.do("insert into photo_{n} (id) values (20); select 1 / 0; select 'not reached'")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "ErrorAfterRows", play: func(c *client) { c.do("select 100 / (5 - n), '{n}' from generate_series(1, 10) n") }},
	{name: "SyntaxError", play: func(c *client) { c.do("selec '{n}'"); c.do("select '{n}'") }},
	{name: "UnknownTable", play: func(c *client) { c.do("select '{n}', *\nfrom nowhere_{n}") }},
	{name: "Constraints", play: func(c *client) {
		c.do("insert into photo_{n} (id) values (1)")
		c.do("insert into photo_{n} (id, likes) values (11, -1)")
		c.do("insert into photo_{n} (id, who) values (11, null)")
	}},
	{name: "Notices", play: func(c *client) {
		c.do("do $$ begin raise notice 'one {n}'; raise warning 'two {n}' using hint = 'none'; raise debug 'unseen'; end $$")
		c.do("do $$ begin raise notice 'before {n}'; raise exception 'at {n}' using detail = 'D', errcode = 'SG001'; end $$")
		c.do("rollback")
	}},
	{name: "Parameters", play: func(c *client) {
		c.do("set datestyle = 'german'; set application_name = '{n}'; select date '2010-10-06'")
		c.do("select date '2010-10-06'")
		c.do("reset datestyle; reset application_name")
	}},
	{name: "BigRows", needs: large, play: func(c *client) {
		c.do("select n, repeat('{n}', 350000) from generate_series(1, 20) n")
	}},
	{name: "ManyRows", needs: large, play: func(c *client) { c.do("select n, '{n}' from generate_series(1, 50000) n") }},
	{name: "BigRow", needs: large, play: func(c *client) { c.do("select repeat('{n}', 7000000)"); c.do("select '{n}'") }},
	{name: "BigQuery", needs: large, play: func(c *client) {
		c.do("select md5('" + strings.Repeat("{n}x", 1_250_000) + "')")
		c.do("select '{n}'")
	}},
	{name: "InFlight", play: func(c *client) {
		c.send(query("select '{n}', 1"), query("select 1 / 0"), query(""), query("select '{n}', 2"))
		c.ready(4)
	}},
	{name: "HundredInFlight", needs: large, play: func(c *client) {
		var all []pgproto3.FrontendMessage
		for range 100 {
			all = append(all, query("select '{n}', repeat('{n}', 1000)"))
		}
		c.send(all...)
		c.ready(100)
	}},
	{name: "Transaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.do("insert into photo_{n} (id, likes) values (11, 1)")
		c.do("select count(*) from photo_{n}")
		c.do("commit")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "TransactionInFlight", needs: block, play: func(c *client) {
		c.send(query("begin"), query("insert into photo_{n} (id) values (11)"), query("rollback"),
			query("select count(*) from photo_{n}"), query("begin"), query("select '{n}'"), query("commit"))
		c.ready(7)
	}},
	{name: "FailedTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.do("insert into photo_{n} (id) values (1)")
		c.do("select '{n}'")
		c.do("rollback")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "CommitOfFailedTransaction", needs: block, play: func(c *client) {
		c.do("begin; insert into photo_{n} (id) values (11)")
		c.do("select 1 / 0")
		c.do("commit")
		c.do("select count(*) from photo_{n}")
	}},
	{name: "Savepoints", needs: block, play: func(c *client) {
		c.do("begin; savepoint a; insert into photo_{n} (id) values (11)")
		c.do("select 1 / 0")
		c.do("rollback to a")
		c.do("select count(*) from photo_{n}")
		c.do("commit")
	}},
	{name: "TransactionsInOneQuery", needs: block, play: func(c *client) {
		c.do("select '{n}'; begin; insert into photo_{n} (id) values (11)")
		c.do("commit; begin; insert into photo_{n} (id) values (12)")
		c.do("rollback; select count(*) from photo_{n}")
	}},
	{name: "StrayCommit", needs: block, play: func(c *client) { c.do("commit"); c.do("begin"); c.do("begin"); c.do("rollback") }},
	{name: "CommitAndChain", needs: block, play: func(c *client) {
		c.do("begin isolation level serializable")
		c.do("commit and chain")
		c.do("show transaction_isolation")
		c.do("rollback")
	}},
	{name: "Cursor", needs: block, play: func(c *client) {
		c.do("begin; declare list cursor for select id, who from photo_{n} order by id")
		c.do("fetch 3 from list")
		c.do("move 2 in list")
		c.do("fetch all from list")
		c.do("close list; commit")
	}},
	{name: "PrepareInSQL", needs: block, play: func(c *client) {
		c.do("begin; prepare likes (int) as select likes, who from photo_{n} where id = $1")
		c.do("execute likes (3)")
		c.do("deallocate likes; commit")
	}},
	{name: "TemporaryTable", needs: block, play: func(c *client) {
		c.do("begin; create temporary table scratch (a text) on commit drop; insert into scratch values ('{n}')")
		c.do("select a || 'x' from scratch")
		c.do("commit")
	}},
	{name: "DDL", play: func(c *client) {
		c.do("create schema made_{n} create table a (b int)")
		c.do("drop table made_{n}.a, made_{n}.b")
		c.do("drop schema made_{n} cascade")
	}},
	{name: "FunctionCall", needs: still, play: func(c *client) {
		c.send(call(1397, "-5"))
		c.ready(1)
		c.send(call(1, "-5"))
		c.ready(1)
		c.send(call(1397, "{n}"))
		c.ready(1)
		c.send(call(1397, "-6"), query("select '{n}'"), call(1397, "-7"))
		c.ready(3)
	}},
	{name: "FunctionCallInTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.send(call(1397, "-5"))
		c.ready(1)
		c.send(call(1397, "no"))
		c.ready(1)
		c.send(call(1397, "-5"))
		c.ready(1)
		c.do("rollback")
	}},
	{name: "Cancel", play: func(c *client) {
		c.send(query("select '{n}', pg_sleep(60)"))
		c.sleeps()
		c.cancel(c.key)
		c.ready(1)
		c.do("select '{n}'")
	}},
	{name: "CancelInTransaction", needs: block, play: func(c *client) {
		c.do("begin")
		c.send(query("select '{n}', pg_sleep(60)"))
		c.sleeps()
		c.cancel(c.key)
		c.ready(1)
		c.do("select '{n}'")
		c.do("rollback")
	}},
	{name: "CancelPipeline", play: func(c *client) {
		// Nothing is behind the query: PostgreSQL signals its process twice,
		// and the second signal may hit what comes next.
		c.send(list(parse("", "select '{n}', 1"), run(""), sync, parse("", "select '{n}', pg_sleep(60)"), run(""), sync)...)
		c.sleeps()
		c.cancel(c.key)
		c.ready(2)
		c.batch(list(parse("", "select '{n}', 2"), run(""))...)
	}},
	{name: "CancelWhenIdle", play: func(c *client) {
		c.do("select '{n}'")
		c.cancel(c.key)
		c.do("select '{n}', pg_sleep(0.01)")
	}},
	{name: "CancelOfAnotherClient", play: func(c *client) {
		c.send(query("select '{n}', pg_sleep(0.3)"))
		c.sleeps()
		key := append([]byte(nil), c.key...)
		if len(key) > 0 {
			key[len(key)-1] ^= 1
		}
		c.cancel(key)
		c.ready(1)
	}},
}

// call is a function call with one text argument.
func call(oid uint32, arg string) *pgproto3.FunctionCall {
	return &pgproto3.FunctionCall{Function: oid, Arguments: [][]byte{[]byte(arg)}}
}
