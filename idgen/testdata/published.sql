-- The function of "Sharding & IDs at Instagram", 2011, with the columns and
-- names that the tests use.
create schema pub;
create sequence pub.table_id_seq;

create function pub.next_id(out result bigint) as $$
declare
  our_epoch bigint := 1314220021721;
  seq_id bigint;
  now_millis bigint;
  shard_id int := 5;
begin
  select nextval('pub.table_id_seq') % 1024 into seq_id;
  select floor(extract(epoch from clock_timestamp()) * 1000) into now_millis;
  result := (now_millis - our_epoch) << 23;
  result := result | (shard_id << 10);
  result := result | (seq_id);
end;
$$ language plpgsql;

create function pub.next_ids(n int) returns setof bigint language sql as
  'select pub.next_id() from generate_series(1, n)';
