-- The tables of a PostgresCatalog, for the schema shardgram.

-- One row, which every change of the map updates first. So changes come one
-- after the other, and who sees a version sees all that led to it.
create table shardgram.catalog (
  single  boolean primary key default true check (single),
  format  int     not null, -- of these tables; a program leaves a later one alone
  shards  int     not null, -- for ever: it is part of how keys hash
  schema  text    not null, -- first part of the names of the shards' schemas
  version bigint  not null
);

create table shardgram.node (
  name  text   primary key,
  dsn   text   not null,
  added bigint not null generated always as identity
);

create table shardgram.shard (
  number  int    primary key check (number between 0 and 8191),
  node    text   not null references shardgram.node,
  epoch   bigint not null check (epoch > 0),
  state   text   not null check (state in ('serving', 'moving', 'fenced')),
  schema  int    not null, -- version of its tables, 0 before the first migration
  version bigint not null  -- of the map, at the shard's last change
);

-- An attempt to move a shard. Its id is in the name of everything that it makes,
-- so a mover that wakes late, after another attempt, finds nothing of its own.
create table shardgram.move (
  id      bigint      primary key generated always as identity,
  shard   int         not null references shardgram.shard,
  source  text        not null references shardgram.node,
  target  text        not null references shardgram.node,
  epoch   bigint      not null, -- that this attempt has last given the shard
  state   text        not null check (state in ('copying', 'fenced', 'switched', 'done', 'aborted')),
  begun   timestamptz not null default now(),
  changed timestamptz not null default now(),
  -- To move a shard onto itself would end in dropping it.
  check (source <> target)
);

-- Two attempts at a time would fence each other.
create unique index move_open on shardgram.move (shard) where state not in ('done', 'aborted');

-- What a move leaves on a node, written down before it is made: a slot that
-- nobody knows of keeps WAL until the disk is full.
create table shardgram.cleanup (
  node text   not null references shardgram.node,
  kind text   not null check (kind in ('slot', 'publication', 'subscription', 'schema')),
  name text   not null,
  move bigint not null references shardgram.move,
  primary key (node, kind, name)
);
