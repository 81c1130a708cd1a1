package main

import (
	"context"
	"errors"
	"iter"
	"strconv"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
)

// A layout is a way to store pairs.
type layout struct {
	Name     string
	Shape    string // of a pair, as the report shows it
	Keys     int64
	settings map[string]string // of redis.conf, beyond the stock ones
	memory   float64           // bytes per key, to see whether the machine suffices
	disk     float64
	command  string // that reads one pair

	// open is nil for memcached.
	open func(rdb *redis.Client, keys int64) (store, error)
}

// A store holds the pairs 0, 1, 2, ... in one layout.
type store interface {
	load(ctx context.Context, keys int64, progress func(done int64)) error

	// get returns the owner of photo i, or absent.
	get(ctx context.Context, i int64) (int64, error)

	// getMulti puts the owner of each of the photos into owners, or absent.
	getMulti(ctx context.Context, photos, owners []int64) error
}

const absent = -1

// layouts returns all in the order in which they are measured.
func layouts(cfg config) []layout {
	all := []layout{
		{
			Name: "string keys", Shape: "SET media:<number> <owner>",
			memory: 90, disk: 25, command: "get", open: openStrings(number),
		},
		{
			Name: "string keys, IDs", Shape: "SET media:<ID> <owner>",
			memory: 110, disk: 35, command: "get", open: openStrings(photoID),
		},
		{
			Name: "id/1000, raised limit", Shape: "HSET mediabucket:<number/1000> <number> <owner>",
			settings: map[string]string{"hash-max-listpack-entries": "1000"},
			memory:   15, disk: 15, command: "hget", open: openBlog,
		},
		{
			Name: "id/1000, stock limit", Shape: "HSET mediabucket:<number/1000> <number> <owner>",
			memory: 80, disk: 25, command: "hget", open: openBlog,
		},
		{Name: "memcached", Shape: "set <number> <owner>", memory: 120},
	}
	for i := range all {
		all[i].Keys = cfg.peers
	}
	for _, keys := range []int64{cfg.peers, cfg.n} {
		all = append(
			all,
			layout{
				Name: "hashkv dense", Shape: "number to owner, 25 bits in a string of 8 KiB", Keys: keys,
				memory: 3.4, disk: 3.5, command: "getrange", open: openDense,
			},
			layout{
				Name: "hashkv sparse", Shape: "ID to owner, in hashes of about 128", Keys: keys,
				memory: 15, disk: 14, command: "hget", open: openSparse,
			},
		)
	}
	if cfg.n == cfg.peers {
		all = all[:len(all)-2]
	}
	return all
}

// number is the key of photo i where a sequence hands them out.
func number(i int64) int64 { return i }

// pipelined is how many commands a peer is sent before the replies are read.
const pipelined = 10_000

// openStrings makes a Redis key of each pair.
func openStrings(id func(i int64) int64) func(*redis.Client, int64) (store, error) {
	return func(rdb *redis.Client, _ int64) (store, error) { return stringKeys{rdb, id}, nil }
}

type stringKeys struct {
	rdb *redis.Client
	id  func(i int64) int64
}

func (s stringKeys) key(i int64) string { return "media:" + strconv.FormatInt(s.id(i), 10) }

func (s stringKeys) load(ctx context.Context, keys int64, progress func(int64)) error {
	for first := int64(0); first < keys; first += pipelined {
		end := min(first+pipelined, keys)
		_, err := s.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := first; i < end; i++ {
				pipe.Set(ctx, s.key(i), owner(i), 0)
			}
			return nil
		})
		if err != nil {
			return err
		}
		progress(end)
	}
	return nil
}

func (s stringKeys) get(ctx context.Context, i int64) (int64, error) {
	return found(s.rdb.Get(ctx, s.key(i)))
}

func (s stringKeys) getMulti(ctx context.Context, photos, owners []int64) error {
	return pipeline(ctx, s.rdb, photos, owners, func(pipe redis.Pipeliner, i int64) *redis.StringCmd {
		return pipe.Get(ctx, s.key(i))
	})
}

// found reads the owner from a reply.
func found(cmd *redis.StringCmd) (int64, error) {
	value, err := cmd.Int64()
	if errors.Is(err, redis.Nil) {
		return absent, nil
	}
	return value, err
}

func pipeline(ctx context.Context, rdb *redis.Client, photos, owners []int64, queue func(redis.Pipeliner, int64) *redis.StringCmd) error {
	cmds := make([]*redis.StringCmd, len(photos))
	pipe := rdb.Pipeline()
	for j, i := range photos {
		cmds[j] = queue(pipe, i)
	}
	_, _ = pipe.Exec(ctx) // each command has its own error
	for j, cmd := range cmds {
		var err error
		if owners[j], err = found(cmd); err != nil {
			return err
		}
	}
	return nil
}

// blog is the layout of Instagram's post of 2011.
type blog struct{ rdb *redis.Client }

func openBlog(rdb *redis.Client, _ int64) (store, error) { return blog{rdb}, nil }

const blogBucket = 1000

func (b blog) at(i int64) (bucket, field string) {
	return "mediabucket:" + strconv.FormatInt(i/blogBucket, 10), strconv.FormatInt(i, 10)
}

func (b blog) load(ctx context.Context, keys int64, progress func(int64)) error {
	for first := int64(0); first < keys; first += pipelined {
		end := min(first+pipelined, keys)
		_, err := b.rdb.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for bucket := first; bucket < end; bucket += blogBucket {
				pairs := make([]any, 0, 2*blogBucket)
				for i := bucket; i < min(bucket+blogBucket, end); i++ {
					pairs = append(pairs, strconv.FormatInt(i, 10), owner(i))
				}
				name, _ := b.at(bucket)
				pipe.HSet(ctx, name, pairs...)
			}
			return nil
		})
		if err != nil {
			return err
		}
		progress(end)
	}
	return nil
}

func (b blog) get(ctx context.Context, i int64) (int64, error) {
	bucket, field := b.at(i)
	return found(b.rdb.HGet(ctx, bucket, field))
}

func (b blog) getMulti(ctx context.Context, photos, owners []int64) error {
	return pipeline(ctx, b.rdb, photos, owners, func(pipe redis.Pipeliner, i int64) *redis.StringCmd {
		bucket, field := b.at(i)
		return pipe.HGet(ctx, bucket, field)
	})
}

// kv is a map of hashkv.
type kv struct {
	table
	id func(i int64) int64
}

type table interface {
	Get(ctx context.Context, key int64) (int64, error)
	GetMulti(ctx context.Context, keys ...int64) (map[int64]int64, error)
	Load(ctx context.Context, entries iter.Seq2[int64, int64], cfg hashkv.LoadConfig) (int64, error)
	Stats(ctx context.Context, cfg hashkv.StatsConfig) (hashkv.Stats, error)
}

func openDense(rdb *redis.Client, keys int64) (store, error) {
	m, err := hashkv.NewDense(rdb, hashkv.DenseConfig{ValueBits: ownerBits, Keys: keys})
	return kv{m, number}, err
}

func openSparse(rdb *redis.Client, keys int64) (store, error) {
	m, err := hashkv.NewSparse[int64](rdb, hashkv.SparseConfig{Entries: keys, ValueBits: ownerBits})
	return kv{m, photoID}, err
}

// loadBatch is twice as many pairs as the buckets of a map of 300 million: a
// command then brings two pairs on average.
const loadBatch = 4 << 20

func (s kv) load(ctx context.Context, keys int64, progress func(int64)) error {
	_, err := s.Load(ctx, func(yield func(int64, int64) bool) {
		for i := range keys {
			if !yield(s.id(i), owner(i)) {
				return
			}
		}
	}, hashkv.LoadConfig{Batch: loadBatch, Progress: progress})
	return err
}

func (s kv) get(ctx context.Context, i int64) (int64, error) {
	value, err := s.Get(ctx, s.id(i))
	if errors.Is(err, hashkv.ErrNotFound) {
		return absent, nil
	}
	return value, err
}

func (s kv) getMulti(ctx context.Context, photos, owners []int64) error {
	keys := make([]int64, len(photos))
	for j, i := range photos {
		keys[j] = s.id(i)
	}
	values, err := s.GetMulti(ctx, keys...)
	for j, key := range keys {
		value, present := values[key]
		if !present {
			value = absent
		}
		owners[j] = value
	}
	return err
}
