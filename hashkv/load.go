package hashkv

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// LoadConfig says how Load goes about it. Its zero value suits a server without
// replicas.
type LoadConfig struct {
	// Batch is the number of entries that are sorted by bucket and sent
	// together. With as many as the map has buckets, most commands bring
	// several entries, which is faster; an entry takes about 64 bytes of the
	// client's memory meanwhile. Default: 65,536.
	Batch int

	// Replicas is how many replicas of each primary must have a batch before it
	// counts as done. A batch that they do not have within 10 s is an error.
	// With 0, a failover may lose the end of what counted. Default: 0.
	Replicas int

	// Progress is called after each batch with the number of entries that are
	// done. Default: not called.
	Progress func(done int64)
}

func (cfg *LoadConfig) complete() error {
	if cfg.Batch < 0 {
		return fmt.Errorf("hashkv: LoadConfig.Batch is %d: want 0 or more", cfg.Batch)
	}
	if cfg.Replicas < 0 {
		return fmt.Errorf("hashkv: LoadConfig.Replicas is %d: want 0 or more", cfg.Replicas)
	}
	if cfg.Batch == 0 {
		cfg.Batch = 65_536
	}
	return nil
}

// Load stores all entries of a sequence, and returns how many of them, from the
// first on, are stored for sure. After an error, such as a [PartialError] about
// one batch, go on with a sequence that leaves out so many, or begin again: what
// is stored twice does no harm. If a key comes more than once the last one counts.
// Others may use the map meanwhile.
func (m *Map[K, V]) Load(ctx context.Context, entries iter.Seq2[K, V], cfg LoadConfig) (int64, error) {
	if err := cfg.complete(); err != nil {
		return 0, err
	}
	return load(ctx, &m.book, entries, cfg, func(batch []item[K, V]) error {
		return m.setItems(ctx, "load", batch)
	})
}

// load cuts a sequence into batches.
func load[K Key, V Value](ctx context.Context, b *book, entries iter.Seq2[K, V], cfg LoadConfig, send func([]item[K, V]) error) (done int64, err error) {
	var begun *view
	batch := make([]item[K, V], 0, min(cfg.Batch, 1<<16))
	store := send
	if cfg.Replicas > 0 {
		store = func(batch []item[K, V]) error {
			var failed error
			err := onReplicas(ctx, b.rdb, cfg.Replicas, func() error {
				failed = send(slices.Clone(batch)) // which may change what it sends
				return failed
			})
			if err != nil && failed == nil {
				err = fmt.Errorf("hashkv: load %s: wait for replicas: %w", b.prefix, err)
			}
			return err
		}
	}
	flush := func() bool {
		if err = store(batch); err == nil && begun == nil {
			begun = b.seen.Load()
		}
		if err == nil && b.seen.Load().ID != begun.ID {
			err = fmt.Errorf("hashkv: load %s: %w", b.prefix, ErrLost) // opened again meanwhile
		}
		if err != nil {
			return false
		}
		done += int64(len(batch))
		batch = batch[:0]
		if cfg.Progress != nil {
			cfg.Progress(done)
		}
		return true
	}
	for key, value := range entries {
		batch = append(batch, item[K, V]{key: key, value: value, order: len(batch)})
		if len(batch) == cfg.Batch && !flush() {
			return done, err
		}
	}
	if len(batch) > 0 {
		flush()
	}
	return done, err
}
