package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/shardgram/shardgram/shard"
)

// isTerminal reports whether somebody watches.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// table writes rows of cells in columns, the first as a heading.
func table(w io.Writer, rows [][]string) {
	var text bytes.Buffer
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	t.Flush()
	for line := range strings.Lines(text.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// failure is a shard that failed, for JSON.
type failure struct {
	Shard int    `json:"shard"`
	Node  string `json:"node"`
	Error string `json:"error"`
}

func failures(err error) []failure {
	list := []failure{} // not null
	failed, _ := errors.AsType[shard.Errors](err)
	for _, e := range failed {
		list = append(list, failure{e.Shard, e.Node, e.Err.Error()})
	}
	return list
}

// short writes a number in few letters: 950, 1.2k, 34M.
func short(n float64) string {
	return scaled(n, 1000, []string{"", "k", "M", "G", "T"})
}

// size writes a number of bytes in few letters.
func size(n int64) string {
	return scaled(float64(n), 1024, []string{" B", " kB", " MB", " GB", " TB"})
}

func scaled(n, step float64, units []string) string {
	i := 0
	for n >= step-0.5 && i < len(units)-1 {
		n /= step
		i++
	}
	if n < 9.95 && n != float64(int64(n)) {
		return fmt.Sprintf("%.1f%s", n, units[i])
	}
	return fmt.Sprintf("%.0f%s", n, units[i])
}

// bar draws a part of width, by eighths of a letter.
func bar(part float64, width int) string {
	eighths := int(min(max(part, 0), 1)*float64(width)*8 + 0.5)
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return text
}
