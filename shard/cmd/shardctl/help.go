package main

import (
	"fmt"
	"io"
	"strings"
)

func overview() string {
	var list strings.Builder
	for _, cmd := range commands {
		fmt.Fprintf(&list, "  %-9s%s\n", cmd.name, cmd.short)
	}
	return `shardctl sets up, looks at and migrates the shards of a cluster: PostgreSQL
schemas, many to a node, whose places are in a catalog in PostgreSQL too.

  shardctl COMMAND [flags]

` + list.String() + `  help     show how a command is used: shardctl help init

Every command takes
  --catalog DSN   the database of the catalog, as postgres://user@host/db
                  (default: SHARDGRAM_CATALOG in the environment, which other
                  users of the machine cannot see as they can see arguments)
  --json          print one JSON object, for programs

Progress and errors go to standard error, results to standard output. No DSN is
ever printed. Ctrl-C ends a command at once; it can be run again.

It exits with
  0  all went well
  1  what was asked for failed, for some shards at least, or shards differ
  2  the arguments are wrong
  3  the catalog cannot be read
`
}

func help(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stdout, overview())
		return ok
	}
	cmd := find(args[0])
	if cmd == nil {
		fmt.Fprintln(stderr, `shardctl: there is no such command; "shardctl help" lists them`)
		return wrongUse
	}
	fmt.Fprint(stdout, cmd.help)
	return ok
}

const initHelp = `shardctl init --shards N --node NAME=DSN ... [--schema PREFIX]

Makes the catalog, deals N shards round to the nodes and creates their schemas,
each with a function next_id(). A node is a database on a PostgreSQL server with
its replicas. Run init again to finish what was interrupted or failed; what is
there is left as it is.

  --shards N        how many, for ever: a power of two up to 8192. Take far more
                    than there are nodes, as only whole shards can move: 1024 or
                    more if the data may grow a hundredfold
  --node NAME=DSN   a node, once for each. NAME is of letters a-z, digits and
                    underscores. A DSN may list several hosts, the primary's and
                    its replicas'. Without =DSN it is in SHARDGRAM_NODE_NAME in
                    the environment; without any --node all of those are taken,
                    in the order of their names
  --schema PREFIX   the first part of the schemas' names (default: shard, for
                    shard_0000, shard_0001, ...)

Given other nodes, a later init adds those that are new, without shards, and
replaces the DSNs of those that have another one. The ids of next_id() have the
default layout of package idgen; a program with another one calls shard.Init.

Examples
  Try it on one server, with two databases as nodes:
    createdb catalog; createdb one; createdb two
    export SHARDGRAM_CATALOG=postgres://localhost/catalog
    shardctl init --shards 16 --node pg_1=postgres://localhost/one \
                              --node pg_2=postgres://localhost/two

  With passwords, which arguments would show to other users of the machine:
    export SHARDGRAM_CATALOG=postgres://app:...@10.0.0.1/catalog
    export SHARDGRAM_NODE_PG_1=postgres://app:...@10.0.0.2,10.0.0.3/app
    export SHARDGRAM_NODE_PG_2=postgres://app:...@10.0.0.4,10.0.0.5/app
    shardctl init --shards 1024 --node pg_1 --node pg_2
`

const statusHelp = `shardctl status [--shards] [--json]

Shows every host of every node: its role, the connections to its database, the
size of that, and how far a replica is behind its primary; then how many shards
are in which state and at which schema version. It exits with 1 if a host does
not answer.

  --shards   list all shards too
`

const routeHelp = `shardctl route KEY
shardctl route --int N | --id ID | --shard N

Tells which shard a key belongs to, and where that lives. No node is asked.

  KEY         a text key, as programs give it to Cluster.Key
  --int N     an integer key, as for Cluster.KeyInt
  --id ID     an ID: its time and sequence are shown too, by the default layout
              of package idgen
  --shard N   a shard's number

Examples
  shardctl route alice
  shardctl route --int=-5
  psql "$DSN_OF_THE_NODE" -c "select count(*) from shard_0061.photo"
`

const migrateHelp = `shardctl migrate DIR [--dry-run] [--lock-timeout D] [--path S,...]

Brings every shard to the last version of the SQL files in DIR, which are named
0001_users.sql, 0002_likes.sql and so on, without schema names in them. Each
shard is one transaction: it has all files or those it had. Shards that fail do
not stop the others; run it again for them. A file that has run must not be
edited.

  --dry-run           look at every shard, and tell what would be done
  --lock-timeout D    how long a statement waits for a lock, with writers queued
                      behind it; then the shard is tried again (default: 200ms)
  --path S,...        schemas to look names up in after the shard's, as the one
                      of the extensions

next_id() gets the default layout of package idgen; where the shards have
another one, migrate by the program that made them.

Examples
  shardctl migrate ./migrations --dry-run
  shardctl migrate ./migrations
`

const driftHelp = `shardctl drift [--json]

Compares the structure of every shard with that of shard 0: tables, columns,
indexes, constraints, functions and so on. It lists what differs, and exits with
1 if anything does.

Example
  shardctl drift && echo "all shards are alike"
`

const hotHelp = `shardctl hot [--for 10s] [--top 20] [--json]

Watches what PostgreSQL counts for a while, and ranks the shards by the rows
that were read and written. Sessions report late, up to ten seconds if they are
idle.

  --for D   how long to watch (default: 10s)
  --top N   how many shards to show (default: 20)

  SHARE      of the rows that all shards read and wrote
  xNODE      times the mean of the shards on the same node
  READ/S     rows that scans went through, wanted or not, in a second
  WRITE/S    rows inserted, updated and deleted in a second
  HIT        share of the blocks that were in PostgreSQL's memory
  DISK/ROW   blocks that were not, for each row: the higher, the slower
  SIZE       of tables and indexes, as of the last vacuum or analyze
`
