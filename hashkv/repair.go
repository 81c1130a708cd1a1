package hashkv

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// RepairConfig says how Repair goes about it.
type RepairConfig struct {
	// Progress is called after each pipeline with the number of buckets that
	// are done, and of all. Default: not called.
	Progress func(done, all int64)
}

// A RepairReport tells what Repair found.
type RepairReport struct {
	Buckets  int64 // that hold entries
	Repaired int64 // brought back to the compact encoding

	// Oversize is how many could not be, as they hold too much for the limits
	// of their server; Names has the first hundred of them. Grow the map, or
	// raise hash-max-listpack-entries and repair it again.
	Oversize int64
	Names    []string
}

//go:embed repair.lua
var repairLua string

// Repair writes every bucket anew that has left the compact encoding, which
// Redis itself never does; each of them atomically. It costs one pipeline per
// node for each 256 buckets.
func (m *Map[K, V]) Repair(ctx context.Context, cfg RepairConfig) (RepairReport, error) {
	var report RepairReport
	fail := func(err error) (RepairReport, error) {
		return report, fmt.Errorf("hashkv: repair %s: %w", m.prefix, err)
	}
	v, err := m.look(ctx, false)
	if err != nil {
		return fail(err)
	}
	// Somebody may have raised the limits in order to repair the map.
	limits, err := readLimits(ctx, m.rdb, m.prefix)
	if err != nil {
		return fail(err)
	}
	begun, all := v, uint64(1)<<v.Level
	for first := uint64(0); first < all; first += walked {
		var spots []spot
		if v, spots, err = m.stretch(ctx, begun, first, min(first+walked, all)); err != nil {
			return fail(err)
		}
		queue := func(pipe redis.Pipeliner, name string) *redis.Cmd {
			return pipe.Eval(ctx, repairLua, []string{name}, limits.chunk(), limits.entries.value)
		}
		err := visit(ctx, m, v, spots, queue, func(s spot, cmd *redis.Cmd) error {
			state, err := cmd.Int()
			if err != nil {
				return err
			}
			if state > 0 {
				report.Buckets++
			}
			switch state {
			case 2:
				report.Repaired++
			case 3:
				report.Oversize++
				if len(report.Names) < 100 {
					report.Names = append(report.Names, m.name(s, v))
				}
			}
			return nil
		})
		if err != nil {
			return fail(err)
		}
		if cfg.Progress != nil {
			cfg.Progress(int64(min(first+walked, all)), int64(all))
		}
	}
	return report, nil
}
