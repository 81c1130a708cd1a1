-- next_id() for shard {{.Shard}} of layout {{.Layout}}
--
-- The state is the sequence id_state: milliseconds since the layout's epoch,
-- then {{.Below}} bits of which the lowest {{.SequenceBits}} count. So a value is an ID whose shard bits
-- are still 0, and where they are not the IDs of the millisecond are used up.
-- nextval() gives every value at most once while the sequence goes up. Only
-- next_id_turn() and id_floor() set it, into a millisecond of which no ID was
-- made, alone under a lock; meanwhile the others would have to count {{.Half}}
-- values to get there, but where shard bits are set they wait for that lock.
--
-- Every argument has exactly the type that PostgreSQL's own functions and
-- operators want: so no other one on a caller's search_path fits better.

do $idgen$
declare
  made text;
begin
  perform pg_advisory_xact_lock(hashtextextended({{.SchemaText}}::text, {{.Class}}::bigint));
  select obj_description(c.oid, 'pg_class'::name) into made
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = {{.SchemaText}} and c.relname = 'id_state' and c.relkind = 'S';
  if not found then
    -- The first value has no ID, so that the first call looks at the clock.
    create sequence {{.Schema}}.id_state
      as bigint minvalue 0 maxvalue {{.MaxValue}} start {{.Start}} cache 1 no cycle;
    comment on sequence {{.Schema}}.id_state is {{.Settings}};
  elsif made is distinct from {{.Settings}} then
    raise exception 'idgen: schema % has a sequence id_state for "%", want "%"', {{.SchemaText}}, made, {{.Settings}}
      using hint = 'IDs of two layouts or shards in one schema would repeat or not be found.';
  end if;
end $idgen$;

create or replace function {{.Schema}}.next_id() returns bigint
language plpgsql volatile parallel unsafe as $idgen$
declare
  v bigint := nextval({{.State}}::regclass);
begin
  if v & {{.ShardMask}}::bigint = 0 and v >> {{.Below}} >= {{.Now}} then
    return v | {{.ShardPlaced}}::bigint;
  end if;
  return {{.Schema}}.next_id_turn(v);
end $idgen$;
comment on function {{.Schema}}.next_id() is 'A new ID of shard {{.Shard}}: unique, and above all before it.';

create or replace function {{.Schema}}.next_ids(n int) returns setof bigint
language plpgsql volatile parallel unsafe as $idgen$
declare
  now bigint := {{.Now}};
begin
  if n is null or n < 0 then
    raise exception 'next_ids: n is %: want 0 or more', n using errcode = 'invalid_parameter_value';
  end if;
  return query
    select case when v & {{.ShardMask}}::bigint = 0 and v >> {{.Below}} >= now then v | {{.ShardPlaced}}::bigint else {{.Schema}}.next_id() end
      from (select nextval({{.State}}::regclass) as v from generate_series(1, n) offset 0) s;
end $idgen$;
comment on function {{.Schema}}.next_ids(int) is 'n new IDs of shard {{.Shard}}, increasing.';

-- next_id_turn gives the ID when v is none: its millisecond is over or used up.
-- The lock is one of a transaction, taken in a subtransaction that is then
-- rolled back on purpose: so it ends here and cannot leak, however a statement is
-- cancelled. Sequences do not roll back.
create or replace function {{.Schema}}.next_id_turn(v bigint) returns bigint
language plpgsql volatile parallel unsafe as $idgen$
declare
  now bigint;
  seen bigint;
begin
  begin
    if v & {{.ShardMask}}::bigint = 0 and v >> {{.Below}} >= {{.Now}} - 8 then
      -- The millisecond has just ended. While another session turns to the
      -- next one, an ID of this one is better than a wait.
      if not pg_try_advisory_xact_lock({{.Class}}, ({{.State}}::regclass::oid::bigint - 2147483648)::int) then
        return v | {{.ShardPlaced}}::bigint;
      end if;
    else
      perform pg_advisory_xact_lock({{.Class}}, ({{.State}}::regclass::oid::bigint - 2147483648)::int);
    end if;
    v := nextval({{.State}}::regclass);
    now := {{.Now}};
    if v & {{.ShardMask}}::bigint <> 0 and v >> {{.Below}} >= now then
      -- Used up. The next one is the clock's next one; if the clock is far
      -- behind, it is still not sooner than that. pg_sleep() ends at a time of
      -- day: set the clock back by an hour, and it would hold the lock that long.
      seen := now;
      while now = seen loop
        now := {{.Now}};
      end loop;
    end if;
    if v & {{.ShardMask}}::bigint <> 0 or v >> {{.Below}} < now then
      if now >= 0 then
        -- Calls that fail leave the count closer to the next millisecond.
        -- From half way on the others could get there first: leave it to them.
        now := greatest(now, ((v + {{.Half}}) >> {{.Below}}) + 1);
      end if;
      if now < 0 or now >= {{.Span}} then
        raise exception 'idgen: the layout {{.Layout}} has no ID for this time' using errcode = 'numeric_value_out_of_range';
      end if;
      -- The count goes on within 64, so that id % n is even for quiet shards.
      v := setval({{.State}}::regclass, (now << {{.Below}}) + ((v + 1) & 63::bigint));
    end if;
    raise sqlstate 'IDGEN';
  exception when sqlstate 'IDGEN' then
    return v | {{.ShardPlaced}}::bigint;
  end;
end $idgen$;
comment on function {{.Schema}}.next_id_turn(bigint) is 'A part of next_id().';

-- id_floor makes IDs begin above a given one: what a shard that moves to another
-- server brings along.
create or replace function {{.Schema}}.id_floor(at_least bigint default 0) returns bigint
language plpgsql volatile parallel unsafe as $idgen$
declare
  v bigint;
begin
  if at_least is null or at_least < 0 or at_least >> {{.Below}} >= {{.Span}} - 1 then
    raise exception 'id_floor: % is no ID of the layout {{.Layout}}', at_least using errcode = 'invalid_parameter_value';
  end if;
  begin
    perform pg_advisory_xact_lock({{.Class}}, ({{.State}}::regclass::oid::bigint - 2147483648)::int);
    v := nextval({{.State}}::regclass);
    if v & {{.ShardMask}}::bigint = 0 or v >> {{.Below}} < at_least >> {{.Below}} then
      -- The state of a millisecond that is used up.
      v := setval({{.State}}::regclass, (greatest(v >> {{.Below}}, at_least >> {{.Below}}) << {{.Below}}) + {{.Start}});
    end if;
    raise sqlstate 'IDGEN';
  exception when sqlstate 'IDGEN' then
    return (v >> {{.Below}} << {{.Below}}) + {{.BelowMask}};
  end;
end $idgen$;
comment on function {{.Schema}}.id_floor(bigint) is 'Makes every later ID larger than at_least, and returns what all later ones are larger than.';

-- What an ID tells, and the range of IDs that a range of time is.

create or replace function {{.Schema}}.id_time(id bigint) returns timestamptz
language sql immutable strict parallel safe as $idgen$
  select to_timestamp(((id >> {{.Below}}) + {{.Epoch}})::float8 / 1000::float8)
$idgen$;

create or replace function {{.Schema}}.id_shard(id bigint) returns int
language sql immutable strict parallel safe as $idgen$
  select ((id >> {{.SequenceBits}}) & {{.MaxShard}}::bigint)::int
$idgen$;

create or replace function {{.Schema}}.id_sequence(id bigint) returns int
language sql immutable strict parallel safe as $idgen$
  select (id & {{.MaxSequence}}::bigint)::int
$idgen$;

create or replace function {{.Schema}}.first_id(at timestamptz) returns bigint
language sql stable strict parallel safe as $idgen$
  select case
    when at < to_timestamp(({{.Epoch}})::float8 / 1000::float8) then 0
    when at >= to_timestamp(({{.Epoch}} + {{.Span}})::float8 / 1000::float8) then {{.MaxID}}
    else floor(extract(epoch from at) * 1000::numeric)::bigint - {{.Epoch}} << {{.Below}}
  end
$idgen$;
comment on function {{.Schema}}.first_id(timestamptz) is 'The smallest ID of a millisecond.';

create or replace function {{.Schema}}.last_id(at timestamptz) returns bigint
language sql stable strict parallel safe as $idgen$
  select case when at < to_timestamp(({{.Epoch}})::float8 / 1000::float8) then 0 else {{.Schema}}.first_id(at) | {{.BelowMask}}::bigint end
$idgen$;
comment on function {{.Schema}}.last_id(timestamptz) is 'The largest ID of a millisecond.';
