package main

import (
	"math"
	"time"

	"github.com/shardgram/shardgram/idgen"
)

// A pair is a photo and its owner. Pair i is the same in every run, and nothing
// about it has to be remembered.
const (
	// every is the time between two photos: a year has 300 million of them.
	every = 105 * time.Millisecond

	// maxPairs is how many have an ID in the layout of idgen.
	maxPairs = 10_000_000_000

	ownerBits = 24
)

// owner returns the owner of photo i, a number of 24 bits.
func owner(i int64) int64 { return int64(hash(uint64(i)) >> (64 - ownerBits)) }

// photoID returns the ID of photo i, as a shard of 8192 would have made it at
// its time. IDs of different photos differ because their milliseconds do.
func photoID(i int64) int64 {
	h := hash(^uint64(i))
	jitter := time.Duration(h % uint64(every))
	at := idgen.Default.Epoch.Add(time.Duration(i) * every).Add(jitter.Truncate(time.Millisecond))
	id, err := idgen.Default.Compose(at, int(h>>32%8192), int(h>>60))
	if err != nil {
		panic("bug: " + err.Error())
	}
	return int64(id)
}

// hash is the finalizer of SplitMix64 on a Weyl sequence.
func hash(x uint64) uint64 {
	x *= 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// leastDense returns the bytes that a pair takes at least if the photos are
// numbers without gaps.
func leastDense() float64 { return ownerBits / 8.0 }

// leastSparse returns the bytes that a pair takes at least if the photos are any
// n of the numbers with as many bits as the last ID: log2 of (2^bits choose n)
// bits for all keys, which is n (bits - log2 n + log2 e) for n far below 2^bits.
func leastSparse(n int64) float64 {
	bits := math.Ceil(math.Log2(float64(photoID(n - 1))))
	return (bits - math.Log2(float64(n)) + math.Log2E + ownerBits) / 8
}
