// Package bench is for measurements that are too long for a package's own
// benchmarks or need other libraries to compare with, which the library itself
// must not depend on.
//
// It has no code, only benchmarks: IDGen sets the generators of idgen beside
// other libraries', NextID sets next_id() of idgen beside the function that
// Instagram published. The command cmd/idgen runs both in rounds and prints a
// report. ManyShards has a cluster of shard at its largest. The command
// cmd/proof300m measures the maps of hashkv with 300 million entries.
package bench
