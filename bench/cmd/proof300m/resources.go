package main

import (
	"fmt"
	"syscall"

	"github.com/shardgram/shardgram/bench/internal/proof"
)

// resources are bytes of memory and of a disk.
type resources struct {
	memory, disk int64
	dir          string // on the disk
}

// available returns what Linux says is left.
func available(dir string) (resources, error) {
	memory, err := proof.Kilobytes("/proc/meminfo", "MemAvailable")
	if err != nil {
		return resources{}, err
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		return resources{}, fmt.Errorf("-dir %s: %w", dir, err)
	}
	return resources{memory, int64(disk.Bavail) * int64(disk.Bsize), dir}, nil
}

// need returns what a run takes. Layouts come one after another, so the largest
// counts.
func need(rows []layout) resources {
	var most resources
	for _, l := range rows {
		// A batch of 4 million pairs is 1 GB of ours while it is sent, and the
		// server's table of keys is there twice while it grows.
		batch := min(l.Keys, loadBatch) * 400
		most.memory = max(most.memory, int64(l.memory*float64(l.Keys)*1.2)+batch+128<<20)
		most.disk = max(most.disk, int64(l.disk*float64(l.Keys)*1.1)+64<<20)
	}
	return most
}

// check refuses a run that needs more than there is.
func (have resources) check(need resources) error {
	switch {
	case have.memory < need.memory:
		return fmt.Errorf("the run takes %s of memory, and %s are available: choose a smaller -n", proof.GB(need.memory), proof.GB(have.memory))
	case have.disk < need.disk:
		return fmt.Errorf("the run takes %s of disk, and %s has %s: choose another -dir, or a smaller -n", proof.GB(need.disk), have.dir, proof.GB(have.disk))
	}
	return nil
}
