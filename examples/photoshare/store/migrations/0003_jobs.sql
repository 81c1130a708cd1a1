-- The queue does the fan-out. What the table of the repair still holds becomes
-- jobs, as River stores them: package jobs makes its tables before it comes to
-- this. A job that is there already is done twice, which changes nothing.

insert into jobs.river_job (kind, args, max_attempts)
    select 'fanout', jsonb_build_object('author', author_id, 'ids', jsonb_build_array(id), 'at', since), 32767
    from fanout join photo on photo_id = id;
drop table fanout;
