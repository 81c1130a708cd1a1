-- The same in one expression: faster, so it meets its fault sooner.
create schema pub;
create sequence pub.table_id_seq;

create function pub.next_id() returns bigint language plpgsql as $$
begin
  return (floor(extract(epoch from clock_timestamp()) * 1000)::bigint - 1314220021721) << 23 | 5 << 10 | nextval('pub.table_id_seq') % 1024;
end;
$$;

create function pub.next_ids(n int) returns setof bigint language sql as
  'select pub.next_id() from generate_series(1, n)';
