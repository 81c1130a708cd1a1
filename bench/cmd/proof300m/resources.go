package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// resources are bytes of memory and of a disk.
type resources struct {
	memory, disk int64
	dir          string // on the disk
}

// available returns what Linux says is left.
func available(dir string) (resources, error) {
	memory, err := procKilobytes("/proc/meminfo", "MemAvailable")
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
		return fmt.Errorf("the run takes %s of memory, and %s are available: choose a smaller -n", gb(need.memory), gb(have.memory))
	case have.disk < need.disk:
		return fmt.Errorf("the run takes %s of disk, and %s has %s: choose another -dir, or a smaller -n", gb(need.disk), have.dir, gb(have.disk))
	}
	return nil
}

// procKilobytes reads a line "name:   123 kB" of a file below /proc, in bytes.
func procKilobytes(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == name+":" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

// gb writes bytes as "1.05 GB".
func gb(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/1e9) }
