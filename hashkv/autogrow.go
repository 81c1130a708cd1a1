package hashkv

import (
	"context"
	"fmt"
	"time"
)

// AutoGrowConfig says when a map grows by itself, and how. Its zero value suits
// a map without replicas.
type AutoGrowConfig struct {
	GrowConfig

	// Fill is the mean number of entries in a bucket above which the map is
	// doubled. More than the limit of the servers has room for counts as that:
	// 385 for the stock limit of 512. Default: 256, or that if it is less.
	Fill float64

	// Every is how often AutoGrow looks. Default: 10 s.
	Every time.Duration
}

func (cfg *AutoGrowConfig) complete() error {
	switch {
	case cfg.Fill < 0:
		return fmt.Errorf("hashkv: AutoGrowConfig.Fill is %v: want 0 or more", cfg.Fill)
	case cfg.Every < 0:
		return fmt.Errorf("hashkv: AutoGrowConfig.Every is %v: want 0 or more", cfg.Every)
	}
	if cfg.Fill == 0 {
		cfg.Fill = 2 * targetFill
	}
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Second
	}
	return cfg.GrowConfig.complete()
}

// AutoGrow doubles the map whenever its buckets hold more than cfg.Fill entries
// on average, as often as that takes, until ctx ends; it returns the error of ctx
// then. It may run in every process. What stops it is told to Warn, and it tries
// again. A look costs four round trips.
func (m *Map[K, V]) AutoGrow(ctx context.Context, cfg AutoGrowConfig) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	for {
		grown, err := m.growIfFull(ctx, cfg)
		if err != nil && ctx.Err() == nil {
			m.warn(fmt.Errorf("hashkv: grow %s: %w", m.prefix, err))
		}
		if grown {
			continue // it may be too full still
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(cfg.Every):
		}
	}
}

// growIfFull doubles a map that is too full, or finishes what was begun, and
// reports whether it did. It looks at the fill and begins by one and the same
// header, so that of several that do so at a time one doubles the map.
func (m *Map[K, V]) growIfFull(ctx context.Context, cfg AutoGrowConfig) (bool, error) {
	v, err := m.current(ctx)
	if err == nil && v.Sweeping {
		v, err = m.sweep(ctx, v)
	}
	if err != nil {
		return false, err
	}
	if !v.Growing {
		fill, err := m.fill(ctx, v)
		if err != nil || fill <= min(cfg.Fill, roomFor(v.limits.entries.value)) {
			return false, err
		}
		if _, err := runs(ctx, m.rdb); err != nil {
			return false, err
		}
		if v, err = m.begin(ctx, v); err != nil || !v.Growing {
			return false, err
		}
	}
	err = m.finish(ctx, v, cfg.GrowConfig)
	return err == nil, err
}
