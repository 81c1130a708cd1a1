-- What PostgreSQL has counted: one row for each schema of a shard.
-- A table and its indexes are in the same schema, so the sums need no join between
-- them, as the views pg_stat_user_tables and pg_statio_user_tables make it for each
-- table. Sizes are those of the last vacuum: to look at each file takes ten times as
-- long as all the rest.
select n.nspname::text,
    coalesce(sum(pg_catalog.pg_stat_get_tuples_returned(r.oid)), 0)::bigint as rows_read,
    coalesce(sum(pg_catalog.pg_stat_get_tuples_inserted(r.oid)
        + pg_catalog.pg_stat_get_tuples_updated(r.oid)
        + pg_catalog.pg_stat_get_tuples_deleted(r.oid)) filter (where r.relkind <> 'i'), 0)::bigint as rows_written,
    coalesce(sum(pg_catalog.pg_stat_get_numscans(r.oid)) filter (where r.relkind <> 'i'), 0)::bigint as seq_scans,
    coalesce(sum(pg_catalog.pg_stat_get_blocks_fetched(r.oid) - pg_catalog.pg_stat_get_blocks_hit(r.oid)
        + pg_catalog.pg_stat_get_blocks_fetched(r.reltoastrelid) - pg_catalog.pg_stat_get_blocks_hit(r.reltoastrelid)), 0)::bigint as blocks_read,
    coalesce(sum(pg_catalog.pg_stat_get_blocks_hit(r.oid)
        + pg_catalog.pg_stat_get_blocks_hit(r.reltoastrelid)), 0)::bigint as blocks_hit,
    (coalesce(sum(r.relpages + coalesce(toast.relpages, 0)), 0)
        * pg_catalog.current_setting('block_size')::bigint)::bigint as bytes,
    coalesce(sum(pg_catalog.pg_stat_get_live_tuples(r.oid)) filter (where r.relkind <> 'i'), 0)::bigint as live_rows,
    coalesce(sum(pg_catalog.pg_stat_get_dead_tuples(r.oid)) filter (where r.relkind <> 'i'), 0)::bigint as dead_rows
from pg_catalog.pg_namespace n
left join pg_catalog.pg_class r on r.relnamespace = n.oid and r.relkind in ('r', 'm', 'i')
left join pg_catalog.pg_class toast on toast.oid = r.reltoastrelid
where n.nspname ~ ('^' || $1::text || '_[0-9]{4}$')
group by n.nspname
