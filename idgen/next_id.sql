-- next_id() for shard {{.Shard}} of layout {{.Layout}}
--
-- The state is the sequence id_state: milliseconds since the layout's epoch,
-- then {{.Below}} bits of which the lowest {{.SequenceBits}} count. So a value is an ID whose shard bits
-- are still 0, and where they are not the IDs of the millisecond are used up.
-- nextval() gives every value at most once while the sequence goes up. Only
-- next_id_turn() sets it, into a millisecond that was never used, alone under a
-- lock; meanwhile the others can at most count the {{.Guard}} values to the next
-- millisecond, whose bits tell them to wait for that lock.

do $idgen$
declare
  made text;
begin
  perform pg_advisory_xact_lock(hashtextextended({{.SchemaText}}, {{.Class}}));
  select obj_description(c.oid, 'pg_class') into made
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = {{.SchemaText}} and c.relname = 'id_state' and c.relkind = 'S';
  if found and made is distinct from {{.Settings}} then
    raise exception 'idgen: schema % has a sequence id_state for "%", want "%"', {{.SchemaText}}, made, {{.Settings}}
      using hint = 'IDs of two layouts or shards in one schema would repeat or not be found.';
  end if;
end $idgen$;

-- The first value has no ID, so that the first call looks at the clock.
create sequence if not exists {{.Schema}}.id_state
  as bigint minvalue 0 maxvalue {{.MaxValue}} start {{.Start}} cache 1 no cycle;
comment on sequence {{.Schema}}.id_state is {{.Settings}};

create or replace function {{.Schema}}.next_id() returns bigint
language plpgsql volatile parallel unsafe as $idgen$
declare
  v bigint := nextval({{.State}});
begin
  if v & {{.ShardMask}} = 0 and v >> {{.Below}} >= {{.Now}} then
    return v | {{.ShardPlaced}};
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
    select case when v & {{.ShardMask}} = 0 and v >> {{.Below}} >= now then v | {{.ShardPlaced}} else {{.Schema}}.next_id() end
      from (select nextval({{.State}}) as v from generate_series(1, n) offset 0) s;
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
begin
  begin
    if v & {{.ShardMask}} = 0 and v >> {{.Below}} >= {{.Now}} - 8 then
      -- The millisecond has just ended. While another session turns to the
      -- next one, an ID of this one is better than a wait.
      if not pg_try_advisory_xact_lock({{.Class}}, ({{.State}}::regclass::oid::bigint - 2147483648)::int) then
        return v | {{.ShardPlaced}};
      end if;
    else
      perform pg_advisory_xact_lock({{.Class}}, ({{.State}}::regclass::oid::bigint - 2147483648)::int);
    end if;
    v := nextval({{.State}});
    now := {{.Now}};
    if v & {{.ShardMask}} <> 0 and v >> {{.Below}} >= now then
      -- Used up. The next one is the clock's next one; if the clock is far
      -- behind, it is still not sooner than that.
      perform pg_sleep(0.001);
      now := {{.Now}};
    end if;
    if v & {{.ShardMask}} <> 0 or v >> {{.Below}} < now then
      if now >= 0 then
        now := greatest(now, (v >> {{.Below}}) + 1);
      end if;
      if now < 0 or now >= {{.Span}} then
        raise exception 'idgen: the layout {{.Layout}} has no ID for this time' using errcode = 'numeric_value_out_of_range';
      end if;
      -- The count goes on within 64, so that id % n is even for quiet shards.
      v := setval({{.State}}, (now << {{.Below}}) + ((v + 1) & 63));
    end if;
    raise sqlstate 'IDGEN';
  exception when sqlstate 'IDGEN' then
    return v | {{.ShardPlaced}};
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
    v := nextval({{.State}});
    if v & {{.ShardMask}} = 0 or v >> {{.Below}} < at_least >> {{.Below}} then
      -- The state of a millisecond that is used up.
      v := setval({{.State}}, (greatest(v >> {{.Below}}, at_least >> {{.Below}}) << {{.Below}}) + {{.Start}});
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
  select to_timestamp(((id >> {{.Below}}) + {{.Epoch}}) / 1000::float8)
$idgen$;

create or replace function {{.Schema}}.id_shard(id bigint) returns int
language sql immutable strict parallel safe as $idgen$
  select ((id >> {{.SequenceBits}}) & {{.MaxShard}})::int
$idgen$;

create or replace function {{.Schema}}.id_sequence(id bigint) returns int
language sql immutable strict parallel safe as $idgen$
  select (id & {{.MaxSequence}})::int
$idgen$;

create or replace function {{.Schema}}.first_id(at timestamptz) returns bigint
language sql stable strict parallel safe as $idgen$
  select case
    when at < to_timestamp({{.Epoch}} / 1000::float8) then 0
    when at >= to_timestamp(({{.Epoch}} + {{.Span}}) / 1000::float8) then {{.MaxID}}
    else floor(extract(epoch from at) * 1000)::bigint - {{.Epoch}} << {{.Below}}
  end
$idgen$;
comment on function {{.Schema}}.first_id(timestamptz) is 'The smallest ID of a millisecond.';

create or replace function {{.Schema}}.last_id(at timestamptz) returns bigint
language sql stable strict parallel safe as $idgen$
  select case when at < to_timestamp({{.Epoch}} / 1000::float8) then 0 else {{.Schema}}.first_id(at) | {{.BelowMask}} end
$idgen$;
comment on function {{.Schema}}.last_id(timestamptz) is 'The largest ID of a millisecond.';
