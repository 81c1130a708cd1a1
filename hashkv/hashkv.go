// Package hashkv keeps very large maps of IDs and other small values in Redis
// memory, in 3 to 14 bytes per entry instead of the 70 to 90 of a key of its own.
//
// # Problem
//
// An application has hundreds of millions of pairs such as photo ID → user ID:
// too small for rows of their own, too many for keys of their own. A Redis key
// costs a table entry, an object and two string headers before it holds
// anything. Small hashes and long strings do not pay that per entry, but a hash
// turns into a real hash table, of five times the size, once it grows past a
// limit; IDs that carry a time do not divide evenly over hashes; and a map that
// was divided once is hard to divide again while it is in use.
//
// # Which of the three
//
//	keys                                  use        bytes per entry, for values of 24 bits
//	0, 1, 2, ... with few gaps            [Dense]     3.2   the bits of a value and one, and 1 %
//	any int64, such as IDs of idgen       [Sparse]   13.5   58-bit IDs, 300 million; 14.2 for 3 million
//	strings, such as tokens of URLs       [Strings]  21.6   tokens of 12 bytes
//
// A Dense pays for the gaps: below one key in four present, Sparse is smaller.
// Values are whole numbers of a stated width, or in Sparse and Strings short
// strings of any bytes. All have the same methods. Entries have no time to live:
// give each day a map of its own, or keep keys of their own for what must expire.
//
// # Dense
//
// One Redis string of 8 KiB holds the values of some thousand neighbours, each
// in a slot of one bit more than a value has.
//
//	key 3000000, values of 24 bits: 2616 slots of 25 bits
//
//	dense:1146  ┌───────┬─────┬───────────┬─────┬─────────┐
//	            │ #0    │ ... │ #2064     │ ... │ #2615   │   8175 bytes
//	            └───────┴─────┴───────────┴─────┴─────────┘
//	                            value + 1, so that 0 means absent
//
//	string   8175 + 6 of header and end, fills one of the allocator's sizes   8192
//	key      table entry and slot, object, name                             about 88
//	         8280 / 2616 = 3.17 bytes per entry, 25 bits of them are the slot
//
// Any client can read it: with b bits in a value there are s = 8186/(b+1)*8 slots
// in a string, by whole numbers, and key k is in string k/s at slot k%s:
//
//	BITFIELD_RO dense:1146 GET u25 #2064        value + 1, or 0
//
// # Sparse and Strings
//
// One Redis hash, the bucket, holds about 128 entries. Redis keeps a small hash as
// one run of bytes, a listpack: up to hash-max-listpack-entries of them, 512 on a
// stock server, with fields and values of up to hash-max-listpack-value bytes, 64.
// Past either it turns into a hash table and stays one. The bucket's number is
// the low bits of an invertible permutation of the key, and the field is the
// rest: together they are the key in another order, so the map is exact and
// stores no part of a key twice.
//
//	key, 64 bits  ┌───────────────────────────┬────────────┐
//	              │ high 64-k bits            │ low k bits │   2^k buckets
//	              └─────────────┬─────────────┴──────┬─────┘
//	                            │                    ▼
//	                            ├──── hash ────────► xor, bit by bit
//	                            ▼                    ▼
//	                 field, its bytes without      bucket
//	                 the leading zeros
//
//	owner:{5kn}87    field 5 bytes → value 3 bytes, 5 bytes → 3 bytes, ...
//
//	field    5 + 2 of header       7     58-bit ID less 21 bits of bucket
//	value    3 + 2 of header       5     24 bits
//	bucket   7 of listpack, table entry and slot, object, name: about 100,
//	         and the allocator's rounding, about 8 % of it: / 143 entries
//	         12 + 1.5 = 13.5 bytes per entry
//
// In a Strings the bucket is the low bits of a hash of the key, and the field is
// the whole key.
//
// The low 14 bits of the bucket's number choose its slot in a Redis Cluster, by
// the tag in braces, so that a map lies evenly on all slots and both halves of a
// bucket on the same one. The rest of the number follows the tag, with a 1 in
// front that tells how many bits there are.
//
// # Growing
//
// Bit i of a bucket's number depends on bits i and above of the key only: with
// twice the buckets each is divided in two, and nothing else moves. [Map.Grow]
// does that in use, bucket by bucket: one script moves the entries to the two
// halves, which are Redis keys of the next level, and leaves a tombstone at the
// old one.
//
//	owner:{5kn}87  hash, 250 entries      ───►  "split"
//	owner:{5kn}107 -                            hash, 124 entries
//	owner:{5kn}187 -                            hash, 126 entries
//
// The tombstone is a string. A process that has not heard of the growing sends a
// command for a hash there, which fails and changes nothing, and goes on at the
// right half. When all buckets are split, the header says so, and the
// tombstones expire an hour later; no process goes by a header that it read more
// than a minute ago. [Map.AutoGrow] grows a map by itself.
//
// # Keys in Redis
//
// A map owns the keys that begin with its prefix and a colon. <prefix>:header
// holds its parameters, as JSON. Opening a map with others is a
// [MismatchError]. Maps never meet if neither prefix is the beginning of the other
// with a colon.
//
// # Guarantees
//
// The map is exact: no false answers. A write of one entry is atomic, and so is
// SetNX. Calls on many entries are not, and a [PartialError] names those that
// failed. Every call may be repeated. Growing loses nothing, whichever process
// dies when, and other processes go on reading and writing.
//
// A bucket stays compact. The limits of the servers are read when a map is opened;
// a map is planned so that one bucket in 10^10 would pass them; no command alone
// converts a hash, as from Redis 7.2 on one can; and while a process writes, it
// looks every 10 s, and after every 8 entries per bucket, how full the buckets
// are, and is refused with a [LimitError] before they are too full. [Map.Stats]
// shows buckets that have left the encoding, and [Map.Repair] brings them back.
//
// # Non-guarantees
//
// Redis is the only copy: it needs persistence if the map cannot be filled
// again, and the noeviction policy, as an eviction drops a hundred entries at
// once. A process notices within a second that its map is gone ([ErrLost]);
// until then it may write to the one that has taken its place: stop the writers
// before a map is made again with other parameters. A failover loses what Redis
// had not copied to the replica yet, as always with Redis; Load and Grow can
// wait for replicas. A map whose header alone was lost must be deleted before it
// is made again: entries do not tell how they are stored. A process that sleeps
// for an hour between two steps of one call, while the map grows, may write to a
// place where nobody looks. Whoever can choose the keys of a Strings can choose
// ones that fall into the same bucket.
//
// # Cost
//
// Bytes are the growth of used_memory in Redis 7.0 with stock settings, as
// TestMemory and docs/hashkv-300m.md (make proof-300m) have measured them. After a
// load the process takes up to a third more of Sparse and Strings, which is what
// the allocator keeps of buckets that outgrew their place, until activedefrag or a
// restart.
//
// Get, Set and SetNX are one round trip; GetMulti, SetMulti and Delete one
// pipeline per node for each 4096 buckets, except that Delete of a Dense first
// reads. While a map grows, calls on buckets that are split take a second round
// trip. One call per second, process and map also reads the header again. A
// dense access takes constant time. A sparse one reads through its bucket, half
// of it for a hit and all of it for a miss, about 0.5 µs, which is why a bucket
// holds 128 entries and not the 1000 of the original.
//
// # Failure
//
// An error from Redis comes back wrapped, with the operation and the key;
// prefix[7] is the entry of key 7, and prefix:7 a Redis key. It never holds a
// stored value. The predicates of go-redis know it: redis.IsOOMError (the
// command wrote nothing), redis.IsReadOnlyError (a failover is under way, try
// again). A key that the map cannot hold is a [RangeError] also for Get. Errors
// about the map itself are [ErrLost], [MismatchError], [LimitError] and
// [CorruptError]. While the server that has the header is away, calls on others
// go on for a minute. Whether a call returns as soon as its context ends, and
// how long one waits for a Redis that is gone, is up to the client: set
// ContextTimeoutEnabled, and few retries.
//
// A map needs a user who may use GET, GETEX, SET, DEL, EVAL, EVALSHA, INFO and
// the commands for hashes (or BITFIELD, GETRANGE, SETRANGE and STRLEN), OBJECT
// for Stats, WAIT for Replicas; CONFIG and MEMORY help. Without CONFIG, opening
// a map finds the limits out by two hashes of its own. To remove a map, stop its
// users and delete the header, then the keys that begin with the prefix and ":{"
// (":" for a Dense).
//
// # Source
//
// "Storing hundreds of millions of simple key-value pairs in Redis", Instagram
// Engineering, 2011, which kept 1000 pairs per hash under id/1000. Dividing a
// key into a place and the rest is quotienting: Knuth, The Art of Computer
// Programming, volume 3, section 6.4, exercise 13. Growing by one more bit of
// the same hash is linear hashing: Litwin, VLDB 1980.
package hashkv
