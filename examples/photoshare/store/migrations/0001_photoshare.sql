-- Every shard has these tables. A user's ID carries the shard of the user's
-- name; a photo's ID carries the shard of its author. So a user's photos, and
-- what others did to them, lie together.

create table account (
    id       bigint primary key,
    name     text not null unique, -- in all shards: a name has one shard
    password text not null         -- argon2id, in the PHC string format
);

create table photo (
    id        bigint primary key,
    author_id bigint not null references account,
    caption   text not null,
    likes     int not null default 0
);
create index photo_of_author on photo (author_id, id desc);

create table liked (
    photo_id bigint not null references photo,
    user_id  bigint not null, -- of any shard
    primary key (photo_id, user_id)
);

-- A follow is two rows: one where the follower lives, which says whose photos
-- the home feed shows, and one where the followed user lives, for the fan-out.
create table following (
    user_id     bigint not null references account,
    followed_id bigint not null,
    primary key (user_id, followed_id)
);
create table follower (
    user_id     bigint not null references account,
    follower_id bigint not null,
    primary key (user_id, follower_id)
);

-- Work that outlives a crash: photos whose files are being written, photos that
-- are not yet in all followers' feeds, feeds that do not show whom their owner
-- follows, and photos whose copy in memcached is old. Whoever does the work
-- deletes the row as it was read: a newer one is work to be done again.
create table upload (
    photo_id    bigint primary key,
    started_at  timestamptz not null default now(),
    given_up_at timestamptz -- from then on it cannot become a photo
);
create table fanout (
    photo_id bigint primary key references photo,
    since    timestamptz not null default now()
);
create table stale_feed (
    user_id bigint primary key references account,
    since   timestamptz not null default clock_timestamp()
);
create table stale_photo (
    photo_id bigint primary key references photo,
    since    timestamptz not null default clock_timestamp()
);
