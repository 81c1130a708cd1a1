//go:build unix

package leasetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/idgen"
)

// holding is the environment variable that makes a test binary a holder.
const holding = "LEASETEST_HOLDER"

// HolderLayout is for holders: it has 64 IDs per millisecond, so that one Fill
// uses a millisecond up, and two who share it repeat IDs soon.
var HolderLayout = idgen.Layout{TimeBits: 45, ShardBits: 13, SequenceBits: 6, Epoch: idgen.Default.Epoch}

// Holding returns the argument of StartHolder in a process that it started. A
// test binary calls it before any test, and then Hold.
func Holding() (arg string, ok bool) { return os.LookupEnv(holding) }

// Hold opens a generator and prints its IDs until the process is killed. When
// the generator fails it prints why and exits.
func Hold(leases idgen.Leases, shard int, cfg idgen.Config) {
	ctx := context.Background()
	g, err := idgen.Open(ctx, leases, shard, cfg)
	var ids [64]idgen.ID
	var out []byte // of less than PIPE_BUF, so that a kill leaves no part of a line
	for n := 0; err == nil; {
		if n, err = g.Fill(ctx, ids[:]); errors.Is(err, context.DeadlineExceeded) {
			err = nil // of a store on a busy machine: a retry is safe
		}
		out = out[:0]
		for _, id := range ids[:n] {
			out = fmt.Appendf(out, "%d\n", id)
		}
		// When nobody reads any more, SIGPIPE ends the process.
		_, _ = os.Stdout.Write(out)
		time.Sleep(2 * time.Millisecond) // or its reader takes the whole machine
	}
	fmt.Printf("error: %v\n", err)
	os.Exit(1)
}

// A Holder is a process that holds a shard number and prints IDs. Its methods
// are for the test's goroutine.
type Holder struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when all that it printed has been read

	mu     sync.Mutex
	ids    []idgen.ID
	failed string
}

// StartHolder runs the test binary as a holder, for which [Holding] returns arg.
func StartHolder(t *testing.T, arg string) *Holder {
	t.Helper()
	h := &Holder{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	h.cmd.Env = append(os.Environ(), holding+"="+arg)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, h.cmd.Start())
	go func() {
		defer close(h.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			h.read(lines.Text())
		}
	}()
	t.Cleanup(h.Kill)
	return h
}

func (h *Holder) read(line string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id, err := idgen.Parse(line); err == nil {
		h.ids = append(h.ids, id)
		return
	}
	h.failed += strings.TrimPrefix(line, "error: ")
}

// IDs returns what the holder has printed so far.
func (h *Holder) IDs() []idgen.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids)
}

func (h *Holder) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ids)
}

// Await waits until the holder has printed n more IDs, and reports whether it
// did: else it has ended.
func (h *Holder) Await(t *testing.T, n int) bool {
	t.Helper()
	n += h.count()
	for deadline := time.Now().Add(time.Minute); h.count() < n; time.Sleep(time.Millisecond) {
		if h.Ended() {
			return false
		}
		require.True(t, time.Now().Before(deadline), "the holder prints nothing")
	}
	return true
}

// Repeats counts the IDs that holders have printed, and those among them that
// had been printed before.
func Repeats(holders ...*Holder) (ids, repeats int) {
	seen := map[idgen.ID]bool{}
	for _, h := range holders {
		for _, id := range h.IDs() {
			if seen[id] {
				repeats++
			}
			seen[id] = true
			ids++
		}
	}
	return ids, repeats
}

// Ended reports whether the process has ended.
func (h *Holder) Ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// AwaitFailure waits until the generator fails and returns its error.
func (h *Holder) AwaitFailure(t *testing.T) string {
	t.Helper()
	select {
	case <-h.done:
	case <-time.After(time.Minute):
		require.FailNow(t, "the holder works on")
	}
	return h.failed
}

// Pause stops the process where it stands, and returns when it does.
func (h *Holder) Pause(t *testing.T) {
	t.Helper()
	require.NoError(t, h.cmd.Process.Signal(syscall.SIGSTOP))
	var status syscall.WaitStatus
	_, err := syscall.Wait4(h.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
	require.NoError(t, err)
	require.True(t, status.Stopped())
}

// Resume lets the process go on.
func (h *Holder) Resume(t *testing.T) {
	t.Helper()
	require.NoError(t, h.cmd.Process.Signal(syscall.SIGCONT))
}

// Kill ends the process with SIGKILL and waits until it is gone and all that it
// printed has been read.
func (h *Holder) Kill() {
	_ = h.cmd.Process.Kill()
	<-h.done
	_ = h.cmd.Wait()
}
