package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// measured is what the benchmarks printed.
type measured struct {
	rows    []string                        // in the order of the first round
	values  map[string]map[string][]float64 // row, unit, one for each round
	machine map[string]string               // lines such as "cpu: ..."
}

func newMeasured() *measured {
	return &measured{values: map[string]map[string][]float64{}, machine: map[string]string{}}
}

var (
	machineLine = regexp.MustCompile(`^(cpu|postgresql): (.*)$`)
	processors  = regexp.MustCompile(`-\d+$`) // GOMAXPROCS at the end of a name
)

// add reads one line of a benchmark's output. It returns the row, or nothing for
// a line that is none.
func (m *measured) add(line string) (string, error) {
	if found := machineLine.FindStringSubmatch(line); found != nil {
		m.machine[found[1]] = found[2]
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "Benchmark") {
		return "", nil
	}
	row := processors.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
	figures := map[string]float64{}
	for pair := range slices.Chunk(fields[2:], 2) { // after the name and the count
		value, err := strconv.ParseFloat(pair[0], 64)
		if err != nil || len(pair) != 2 {
			return "", fmt.Errorf("no benchmark result: %q", line)
		}
		figures[pair[1]] = value
	}
	if m.values[row] == nil {
		m.rows = append(m.rows, row)
		m.values[row] = map[string][]float64{}
	}
	for unit, value := range figures {
		m.values[row][unit] = append(m.values[row][unit], value)
	}
	return row, nil
}

// ratios returns what a bar's row measured in each round, divided by what the
// other row did in the same round, if the bar has one. Rounds in which one of
// them had less of the processor than the bar asks for are left out. It is empty
// if a row was not measured in all rounds.
func (m *measured) ratios(b bar) []float64 {
	values, cores := m.values[b.Row][b.Unit], m.values[b.Row]["%core"]
	others, otherCores := m.values[b.Over][b.Unit], m.values[b.Over]["%core"]
	if b.Over != "" && len(others) != len(values) {
		return nil
	}
	var ratios []float64
	for i, v := range values {
		if b.Core > 0 && cores[i] < b.Core {
			continue
		}
		if b.Over != "" {
			if b.Core > 0 && otherCores[i] < b.Core {
				continue
			}
			v /= others[i]
		}
		ratios = append(ratios, v)
	}
	return ratios
}

// A spread is the median, the least and the largest of a figure's rounds.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf needs one value or more.
func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// spreads returns those of all units of a row.
func (m *measured) spreads(row string) map[string]spread {
	s := map[string]spread{}
	for unit, values := range maps.All(m.values[row]) {
		s[unit] = spreadOf(values)
	}
	return s
}
