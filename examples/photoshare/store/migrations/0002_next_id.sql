-- PostgreSQL makes the IDs, so that any number of programs can. The first one is
-- above those that the program made.

select id_floor(greatest(
    (select max(id) from account), (select max(id) from photo), (select max(photo_id) from upload), 0));
alter table account alter id set default next_id();
alter table upload alter photo_id set default next_id(); -- the photo takes it over
