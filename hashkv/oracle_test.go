package hashkv_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/shardgram/shardgram/hashkv"
	"github.com/stretchr/testify/require"
)

// An oracle knows what a map must hold while others change how it is stored.
// Each key has one writer, whose values only rise: a read must not see less than
// what was acknowledged before it began, nor more than what was sent before it
// ended.
type oracle struct {
	maps    []*hashkv.Sparse[int64] // each has a writer and a reader
	forgive func(error) bool        // errors that calls may return
	entries []struct{ sent, acked atomic.Int64 }
	calls   atomic.Int64 // that succeeded
}

// oracleKey spreads numbers over all int64.
func oracleKey(i int) int64 { return int64(uint64(i+1) * 0x9e3779b97f4a7c15) }

func newOracle(n int, maps ...*hashkv.Sparse[int64]) *oracle {
	return &oracle{
		maps:    maps,
		forgive: func(error) bool { return false },
		entries: make([]struct{ sent, acked atomic.Int64 }, n),
	}
}

// write stores the next value of each key.
func (o *oracle) write(t *testing.T, m *hashkv.Sparse[int64], keys ...int) error {
	values := make(map[int64]int64, len(keys))
	for _, i := range keys {
		values[oracleKey(i)] = o.entries[i].sent.Add(1)
	}
	var err error
	if len(keys) == 1 {
		err = m.Set(t.Context(), oracleKey(keys[0]), values[oracleKey(keys[0])])
	} else {
		err = m.SetMulti(t.Context(), values)
	}
	partial, _ := errors.AsType[*hashkv.PartialError[int64]](err)
	for _, i := range keys {
		key := oracleKey(i)
		if err == nil || partial != nil && !slices.Contains(partial.Failed, key) {
			o.entries[i].acked.Store(values[key])
		}
	}
	return err
}

// An oracleError is a read that saw what it must not.
type oracleError struct {
	key         int64
	found       bool
	got         int64
	least, most int64
}

func (e *oracleError) Error() string {
	return fmt.Sprintf("key %d: found %v, %d: want %d to %d", e.key, e.found, e.got, e.least, e.most)
}

// read reads keys and judges what it gets.
func (o *oracle) read(t *testing.T, m *hashkv.Sparse[int64], keys ...int) error {
	least := make([]int64, len(keys))
	ids := make([]int64, len(keys))
	for n, i := range keys {
		least[n], ids[n] = o.entries[i].acked.Load(), oracleKey(i)
	}
	found := make(map[int64]int64)
	var err error
	if len(keys) == 1 {
		var value int64
		if value, err = m.Get(t.Context(), ids[0]); err == nil {
			found[ids[0]] = value
		} else if errors.Is(err, hashkv.ErrNotFound) {
			err = nil
		}
	} else {
		found, err = m.GetMulti(t.Context(), ids...)
	}
	if err != nil {
		return err
	}
	for n, i := range keys {
		if err := o.judge(i, found, least[n]); err != nil {
			return err
		}
	}
	return nil
}

func (o *oracle) judge(i int, found map[int64]int64, least int64) error {
	got, present := found[oracleKey(i)]
	most := o.entries[i].sent.Load()
	if got < least || got > most || present != (got > 0) {
		return &oracleError{oracleKey(i), present, got, least, most}
	}
	return nil
}

// fill writes every key once.
func (o *oracle) fill(t *testing.T) {
	all := make([]int, len(o.entries))
	for i := range all {
		all[i] = i
	}
	require.NoError(t, o.write(t, o.maps[0], all...))
}

// start lets everybody write and read until stop, which checks what they saw
// and then every key.
func (o *oracle) start(t *testing.T) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	failed := make(chan error, 2*len(o.maps))
	loop := func(call func(n int) error) {
		for !done.Load() {
			err := call([]int{1, 20}[rand.IntN(2)])
			if err == nil {
				o.calls.Add(1)
			} else if _, wrong := errors.AsType[*oracleError](err); wrong || !o.forgive(err) {
				failed <- err
				return
			}
		}
	}
	for w, m := range o.maps {
		wg.Go(func() {
			loop(func(n int) error {
				keys := make([]int, n)
				for i := range keys { // those that are w modulo the number of writers
					own := (len(o.entries) - w + len(o.maps) - 1) / len(o.maps)
					keys[i] = rand.IntN(own)*len(o.maps) + w
				}
				slices.Sort(keys)
				return o.write(t, m, slices.Compact(keys)...)
			})
		})
		wg.Go(func() {
			loop(func(n int) error {
				keys := make([]int, n)
				for i := range keys {
					keys[i] = rand.IntN(len(o.entries))
				}
				return o.read(t, m, keys...)
			})
		})
	}
	end := sync.OnceFunc(func() {
		done.Store(true)
		wg.Wait()
	})
	t.Cleanup(end)
	return func() {
		t.Helper()
		end()
		select {
		case err := <-failed:
			require.NoError(t, err)
		default:
		}
		o.check(t)
	}
}

// went waits until so many more calls have succeeded. It may be called on any
// goroutine, and gives up if all of them have ended.
func (o *oracle) went(t *testing.T, n int64) {
	goal := o.calls.Load() + n
	await(t, func() bool { return o.calls.Load() >= goal })
}

// check reads every key with every map.
func (o *oracle) check(t *testing.T) {
	t.Helper()
	all := make([]int, len(o.entries))
	for i := range all {
		all[i] = i
	}
	for _, m := range o.maps {
		require.NoError(t, o.read(t, m, all...))
	}
	found := make(map[int64]int64)
	entries, failed := o.maps[0].All(t.Context())
	times := 0
	for key, value := range entries {
		found[key] = value
		times++
	}
	require.Len(t, found, times, "a key that came twice")
	require.NoError(t, failed())
	for i := range o.entries {
		require.NoError(t, o.judge(i, found, o.entries[i].acked.Load()))
	}
	require.LessOrEqual(t, len(found), len(o.entries), "keys that nobody wrote")
}

// sameRedis returns a client of its own for the database of rdb.
func sameRedis(t *testing.T, rdb *redis.Client) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: rdb.Options().Addr, DB: rdb.Options().DB})
	t.Cleanup(func() { client.Close() })
	return client
}
