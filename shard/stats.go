package shard

import "sync/atomic"

// shardStats counts what was done with a shard.
type shardStats struct {
	calls, failed, fenced atomic.Int64
	busy                  atomic.Int64 // nanoseconds that connections were held
}
