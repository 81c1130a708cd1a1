// Package proof is what the commands share that measure for minutes and write a
// report: how far they are, what machine it is, and how figures are written.
package proof

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Machine returns what figures depend on, as far as Linux tells it.
func Machine() map[string]string {
	m := map[string]string{
		"go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
		"cores": fmt.Sprint(runtime.NumCPU()), "cpu": "unknown processor", "memory": "unknown", "load": "unknown",
		"redis": Version("redis-server", "--version"), "memcached": Version("memcached", "-V"),
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m["cpu"] = strings.TrimSpace(value)
			}
		}
	}
	if total, err := Kilobytes("/proc/meminfo", "MemTotal"); err == nil {
		m["memory"] = GB(total)
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m["load"], _, _ = strings.Cut(string(text), " ")
	}
	return m
}

// Version runs a program that tells its version, such as "memcached 1.6.18" or
// "Redis server v=7.0.15 sha=...".
func Version(program, flag string) string {
	text, err := exec.Command(program, flag).Output()
	if err != nil {
		return "unknown"
	}
	for word := range strings.FieldsSeq(string(text)) {
		number := strings.TrimPrefix(word, "v=")
		if number != "" && number[0] >= '0' && number[0] <= '9' {
			return number
		}
	}
	return "unknown"
}

// Kilobytes reads a line "name:   123 kB" of a file below /proc, in bytes.
func Kilobytes(file, name string) (int64, error) {
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

// GB writes bytes as "1.05 GB".
func GB(bytes int64) string { return fmt.Sprintf("%.2f GB", float64(bytes)/1e9) }

// Count writes 3000000 as "3,000,000".
func Count(n int64) string {
	text := fmt.Sprint(n)
	for at := len(text) - 3; at > 0; at -= 3 {
		text = text[:at] + "," + text[at:]
	}
	return text
}

// Write writes a report to the folder dir: the Markdown of it, its chart as PNG
// and SVG, and, where jsonFile is not empty, all its figures to that file.
func Write(dir, name, markdown string, chart func(files ...string) error, jsonFile string, figures any) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, name)
	err := errors.Join(
		os.WriteFile(file+".md", []byte(markdown), 0o644),
		chart(file+".png", file+".svg"),
	)
	if err != nil || jsonFile == "" {
		return err
	}
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(jsonFile, append(text, '\n'), 0o644)
}
