-- Authors with so many followers that their photos are not pushed to each of
-- them, or were not: feedcache.Routes says what the columns mean.

create table celebrity (
    author_id bigint primary key references account,
    route     int not null,
    since     bigint
);
