package pglease

import "strings"

// statements are the SQL for a table. Each is one statement in autocommit.
type statements struct {
	table                                     string
	install, claim, claimAny, extend, release string
}

func newStatements(table string) statements {
	r := strings.NewReplacer("TABLE", table, "DURABLE", durable, "EXPIRY", expiry)
	return statements{
		table:    table,
		install:  r.Replace(install),
		claim:    r.Replace(claim),
		claimAny: r.Replace(claimAny),
		extend:   r.Replace(extend),
		release:  r.Replace(release),
	}
}

const (
	// durable makes this transaction wait at its commit until what it wrote is
	// on the disk, whatever the session's default is. It is a row of the FROM
	// list, so that it is always computed, and over with the transaction.
	durable = `(select set_config('synchronous_commit', 'on', true)) durable`

	// expiry is when a holder that is heard of now has been silent for too long.
	expiry = `clock_timestamp() + make_interval(secs => $5)`
)

// The lock is for those who install at the same time: "if not exists" does not
// wait for another's table.
const install = `
select pg_advisory_xact_lock(hashtextextended('pglease: install', 0));
create table if not exists TABLE (
	name       text        not null,
	number     integer     not null,
	layout     text        not null,
	token      text        not null,
	mark       bigint      not null,
	expires_at timestamptz not null, -- -infinity: released
	primary key (name, number)
)`

// The claims return the number and its mark, or nulls; the number that was looked
// at and the layout that is stored for it, if known; and whether another claim was
// faster.

// claim takes $1 name, $2 number, $3 layout, $4 token, $5 TTL.
const claim = `
with claimed as (
	insert into TABLE as lease (name, number, layout, token, mark, expires_at)
	values ($1, $2, $3, $4, 0, EXPIRY)
	on conflict (name, number) do update
	set token = excluded.token, expires_at = excluded.expires_at
	where lease.layout = excluded.layout
	returning number, mark
)
select claimed.number, claimed.mark, stored.number, stored.layout, claimed.number is null
from DURABLE
left join claimed on true
left join TABLE stored on stored.name = $1 and stored.number = $2`

// claimAny takes $2 largest number, and the others as claim does. Two who want
// the same free row do not meet, as the second one skips it. Two who make the
// same new row do: the second one makes none, and tries again.
const claimAny = `
with free as (
	select number, layout from TABLE
	where name = $1 and number <= $2 and expires_at <= clock_timestamp()
	order by number limit 1
	for update skip locked
), gap as (
	select lower.number + 1 as number
	from (select -1 as number union all select number from TABLE where name = $1) lower
	where lower.number < $2 and not exists (select from free)
	and not exists (select from TABLE used where used.name = $1 and used.number = lower.number + 1)
	order by 1 limit 1
), taken as (
	update TABLE lease set token = $4, expires_at = EXPIRY
	from free where lease.name = $1 and lease.number = free.number and free.layout = $3
	returning lease.number, lease.mark
), made as (
	insert into TABLE (name, number, layout, token, mark, expires_at)
	select $1, gap.number, $3, $4, 0, EXPIRY from gap
	on conflict do nothing
	returning number, mark
)
select coalesce(taken.number, made.number), coalesce(taken.mark, made.mark), free.number, free.layout, gap.number is not null
from DURABLE
left join free on true left join gap on true left join taken on true left join made on true`

// extend takes $1 name, $2 number, $3 and $4 the token and mark that are stored,
// or $6 and $7 those that may be instead, $8 and $9 the new ones, $5 TTL.
const extend = `
update TABLE lease set token = $8, mark = $9, expires_at = EXPIRY
from DURABLE
where lease.name = $1 and lease.number = $2
and (lease.token = $3 and lease.mark = $4 or lease.token = $6 and lease.mark = $7)`

// release takes $1 name, $2 number, $3 and $4 the token and mark that are
// stored, or $5 and $6 those that may be instead, $7 the new mark.
const release = `
update TABLE lease set token = '', mark = $7, expires_at = '-infinity'
from DURABLE
where lease.name = $1 and lease.number = $2
and (lease.token = $3 and lease.mark = $4 or lease.token = $5 and lease.mark = $6)`
