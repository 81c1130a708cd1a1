-- What others did to a user: a like of a photo of theirs, or, with photo 0, a
-- follow. And how far each user has read of what is new.

create table news (
    id       bigint primary key default next_id(),
    owner_id bigint not null references account,
    actor_id bigint not null,
    photo_id bigint not null,
    since    timestamptz not null default now(),
    told     boolean not null default false, -- it has been pushed to its owner's feed
    unique (owner_id, actor_id, photo_id)
);
create index news_of_owner on news (owner_id, id desc);
create index news_to_tell on news (since) where not told;

alter table account
    add seen_home bigint not null default 0,
    add seen_news bigint not null default 0;
