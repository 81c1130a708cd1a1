// Package shardgram holds the scaling primitives that took Instagram from
// nothing to 14 million users with three engineers, each as a small package of
// its own. This package is the map of them and has no code.
//
// A thin, exact layer over proven engines: PostgreSQL, Redis and memcached
// store, and these packages spread, pack and fan out. Import the ones you need;
// they meet only in your program, through plain types.
//
//	package               what it does                                       may import
//	idgen                 64-bit IDs that sort by time and carry a shard     -
//	idgen/pglease         its worker numbers and marks in PostgreSQL         idgen
//	idgen/redislease      the same in Redis                                  idgen
//	shard                 thousands of logical shards on a few PostgreSQLs   idgen
//	hashkv                compact maps in Redis, that grow                   -
//	feedcache             home feeds in Redis, filled on write               -
//	feedcache/lookaside   object cache with leases in memcached              -
//	pgbounce              connection pooler for PostgreSQL, in process too   -
//
// The photo-sharing server in examples/photoshare wires them together; the
// README shows how to run it.
//
// # One photo's way
//
// The author's name hashes to a shard ([github.com/shardgram/shardgram/shard]).
// The row is stored in that shard, whose next_id() makes the photo's ID
// ([github.com/shardgram/shardgram/idgen]).
// A job that commits with the row pushes the ID to the feeds of the author's
// followers ([github.com/shardgram/shardgram/feedcache]), and whose photo it is
// goes into a map ([github.com/shardgram/shardgram/hashkv]). A follower's page
// reads its feed in one round trip and the photos and users on it from the object cache
// ([github.com/shardgram/shardgram/feedcache/lookaside]), which asks each
// photo's shard for what it lacks.
package shardgram
