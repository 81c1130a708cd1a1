package shardgram_test

import (
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/shardgram/shardgram"

// readMap returns the table in doc.go: for each package the others it may
// import.
func readMap(t *testing.T) map[string][]string {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(doc), "may import\n")
	require.True(t, ok, "doc.go has no map")
	table, _, _ = strings.Cut(table, "//\n")
	may := make(map[string][]string)
	for line := range strings.Lines(table) {
		fields := strings.Fields(strings.TrimPrefix(line, "//"))
		may[fields[0]] = nil
		if last := fields[len(fields)-1]; last != "-" {
			may[fields[0]] = strings.Split(last, ",")
		}
	}
	return may
}

// goList runs go list and returns its lines.
func goList(t *testing.T, args ...string) []string {
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.Fields(string(out))
}

func TestMapShowsEveryPackage(t *testing.T) {
	t.Parallel()
	var found []string
	for _, p := range goList(t, "./...") {
		name := strings.TrimPrefix(strings.TrimPrefix(p, module), "/")
		if name != "" && !strings.Contains("/"+name, "/internal/") && path.Base(path.Dir(name)) != "cmd" {
			found = append(found, name)
		}
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(readMap(t))), found)
}

func TestPackagesImportWhatTheMapAllows(t *testing.T) {
	t.Parallel()
	for name, may := range readMap(t) {
		for _, dep := range goList(t, "-deps", "./"+name) {
			rest, ours := strings.CutPrefix(dep, module+"/")
			if ours && rest != name {
				require.Contains(t, may, rest, "%s imports %s", name, rest)
			}
		}
	}
}

// TestNoPackageLinksTestCode keeps what only tests need out of users' programs.
func TestNoPackageLinksTestCode(t *testing.T) {
	t.Parallel()
	forbidden := []string{"testing", "github.com/stretchr/testify", "go.uber.org/goleak", "pgregory.net/rapid", module + "/internal/localserver", module + "/internal/testserver"}
	links := func(pkg string) (bad []string) {
		for _, dep := range goList(t, "-deps", pkg) {
			for _, f := range forbidden {
				if dep == f || strings.HasPrefix(dep, f+"/") {
					bad = append(bad, dep)
				}
			}
		}
		return bad
	}
	for name := range readMap(t) {
		require.Empty(t, links("./"+name), name)
	}
	require.NotEmpty(t, links("./internal/testserver"), "the check finds test code where it is")
	for _, dep := range links("./internal/localserver") {
		require.Equal(t, module+"/internal/localserver", dep)
	}
}
