package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// build makes the program itself, as only a process of its own can be interrupted
// and killed.
var build = sync.OnceValues(func() (string, error) {
	file, err := filepath.Abs("../../bin/photoshare")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", file, ".").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return file, err
})

// A program is a photoshare process.
type program struct {
	cmd   *exec.Cmd
	lines chan string

	mu  sync.Mutex
	out bytes.Buffer
}

func startProgram(t *testing.T, args ...string) *program {
	return startProgramWith(t, nil, args...)
}

// startProgramWith sets variables of the environment, too.
func startProgramWith(t *testing.T, env []string, args ...string) *program {
	file, err := build()
	require.NoError(t, err)
	p := &program{lines: make(chan string, 1000)}
	p.cmd = exec.Command(file, args...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Dir = t.TempDir()
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = p.cmd.Stdout
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(stdout); scanner.Scan(); {
			p.mu.Lock()
			fmt.Fprintln(&p.out, scanner.Text())
			p.mu.Unlock()
			p.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if t.Failed() {
			t.Log(p.output())
		}
	})
	return p
}

func (p *program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// ready waits for the line with the site's address.
func (p *program) ready(t *testing.T) string {
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case line, ok := <-p.lines:
			require.True(t, ok, "it ended: %s", p.output())
			if _, url, found := strings.Cut(line, "photoshare is ready: "); found {
				return url
			}
		case <-timeout:
			require.FailNow(t, "not ready", p.output())
		}
	}
}

// end waits for the process and returns its exit code.
func (p *program) end(t *testing.T) int {
	timeout := time.After(time.Minute)
	for {
		select {
		case _, ok := <-p.lines:
			if !ok {
				_ = p.cmd.Wait()
				return p.cmd.ProcessState.ExitCode()
			}
		case <-timeout:
			require.FailNow(t, "it does not end", p.output())
		}
	}
}

// kill ends the process with SIGKILL.
func (p *program) kill(t *testing.T) {
	require.NoError(t, p.cmd.Process.Kill())
	require.Equal(t, -1, p.end(t))
}

var serverLine = regexp.MustCompile(`ready after .* (127\.0\.0\.1:\d+)`)

// servers returns the addresses of the servers that were started.
func (p *program) servers() (addrs []string) {
	for _, match := range serverLine.FindAllStringSubmatch(p.output(), -1) {
		addrs = append(addrs, match[1])
	}
	return addrs
}

func listens(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// allGone waits until neither the four servers nor the pooler listen any more.
func (p *program) allGone(t *testing.T) {
	require.Len(t, p.servers(), 5, p.output())
	p.noneLeft(t)
}

func (p *program) noneLeft(t *testing.T) {
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(p.servers(), listens)
	}, 20*time.Second, 20*time.Millisecond, "servers are left behind")
}

func TestUpKeepsItsDataAndStopsItsServers(t *testing.T) {
	t.Parallel()
	data := dataFolder(t)
	up := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	s := &site{url: up.ready(t)}
	require.Contains(t, up.output(), "20 people with 60 photos")
	eve := s.visitor(t, seedNames[0])
	require.Equal(t, "/", eve.post("/login", map[string][]string{"name": {eve.name}, "password": {seedPassword}}).path)
	eve.share(readPhoto(t, "chelsea"), "kept")
	// The last of the photos may still be on their way to her feed.
	var before [][]string
	require.Eventually(t, func() bool {
		before = eve.feed()
		return len(slices.Concat(before...)) == (1+len(seedFollows))*seedPhotos+1
	}, 20*time.Second, 50*time.Millisecond)

	busy := startProgram(t, "up", "--data", dataFolder(t), "--addr", strings.TrimPrefix(s.url, "http://"))
	require.Equal(t, 1, busy.end(t))
	require.Contains(t, busy.output(), "is in use by another program: choose another address with --addr")
	second := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	require.Equal(t, 1, second.end(t))
	require.Contains(t, second.output(), fmt.Sprintf("in use by process %d", up.cmd.Process.Pid))

	idle, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://")) // as browsers keep one
	require.NoError(t, err)
	defer idle.Close()
	require.NoError(t, up.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 0, up.end(t), "Ctrl-C is a clean end: %s", up.output())
	up.allGone(t)

	up = startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	eve.url = up.ready(t)
	require.NotContains(t, up.output(), "seeding")
	require.Equal(t, before, eve.feed(), "the same people, photos and session")
	up.kill(t)
	up.allGone(t) // the kernel and nobody else can have ended them

	up = startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	eve.url = up.ready(t)
	require.Equal(t, before, eve.feed(), "also after a kill")
	require.NoError(t, up.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 0, up.end(t))
	up.allGone(t)

	seeding := startProgram(t, "seed", "--data", data)
	require.Equal(t, 1, seeding.end(t))
	require.Contains(t, seeding.output(), "there are people already")
	require.NoError(t, os.WriteFile(filepath.Join(data, "version"), []byte("2\n"), 0o644))
	newer := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	require.Equal(t, 1, newer.end(t))
	require.Contains(t, newer.output(), "was made by a newer photoshare")
}

// TestUpGoesOnWithASeedingThatWasInterrupted interrupts the first start in the
// middle.
func TestUpGoesOnWithASeedingThatWasInterrupted(t *testing.T) {
	t.Parallel()
	data := dataFolder(t)
	up := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(filepath.Join(data, "photos", "*", "*_150.jpg"))
		require.NoError(t, err)
		return len(files) > 3
	}, time.Minute, 5*time.Millisecond)
	require.NoError(t, up.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 130, up.end(t), up.output())
	require.Contains(t, up.output(), "stopped at")
	require.Contains(t, up.output(), "photoshare: interrupted")
	up.allGone(t)

	up = startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	guest := (&site{url: up.ready(t)}).visitor(t, "")
	require.Contains(t, up.output(), "20 people with 60 photos")
	for _, name := range seedNames {
		require.Contains(t, guest.get("/u/"+name).body, `<b id="photos">3</b>`, name)
	}
	require.NoError(t, up.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 0, up.end(t))
	require.NoFileExists(t, filepath.Join(data, "seeding"))
}

// TestUpBelowAPrivateFolder keeps its data where the servers' users cannot go,
// when the tests run as root: as in a checkout below /root.
func TestUpBelowAPrivateFolder(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data") // 0700
	elsewhere := func() string {
		text, err := os.ReadFile(filepath.Join(data, "servers-at"))
		if os.Geteuid() != 0 {
			require.ErrorIs(t, err, os.ErrNotExist)
			return ""
		}
		require.NoError(t, err)
		return strings.TrimSpace(string(text))
	}
	start := func() (*program, *site) {
		up := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0", "--empty")
		return up, &site{url: up.ready(t)}
	}
	stop := func(up *program) {
		require.NoError(t, up.cmd.Process.Signal(os.Interrupt))
		require.Equal(t, 0, up.end(t))
	}
	up, s := start()
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(elsewhere())) })
	require.NotContains(t, up.output(), "Log in as")
	s.signUp(t, "ada")
	stop(up)
	up, s = start()
	s.visitor(t, "ada").logIn()
	stop(up)

	first := elsewhere()
	if first == "" {
		return
	}
	require.NoError(t, os.Rename(first, first+"-away"))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(first+"-away")) })
	lost := startProgram(t, "up", "--data", data, "--addr", "127.0.0.1:0")
	require.Equal(t, 1, lost.end(t))
	require.Contains(t, lost.output(), "are gone")
	require.NoError(t, os.RemoveAll(data))
	up, s = start()
	a := s.visitor(t, "ada").post("/login", map[string][]string{"name": {"ada"}, "password": {"correct horse"}})
	require.Equal(t, 401, a.status, "a new folder is a new site")
	stop(up)
}

func TestUpEphemeralThrowsItsDataAway(t *testing.T) {
	t.Parallel()
	tmp := dataFolder(t)
	require.NoError(t, os.Mkdir(tmp, 0o711))
	env := []string{"TMPDIR=" + tmp}
	left := func() (names []string) {
		entries, err := os.ReadDir(tmp)
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	up := startProgramWith(t, env, "up", "--ephemeral", "--empty", "--addr", "127.0.0.1:0")
	s := &site{url: up.ready(t)}
	require.NotContains(t, up.output(), "seeding")
	s.signUp(t, "ada").share(readPhoto(t, "chelsea"), "soon gone")
	require.NotEmpty(t, left())
	up.kill(t)
	up.allGone(t)
	killed := left()
	require.NotEmpty(t, killed, "a kill leaves the folder")

	up = startProgramWith(t, env, "up", "--ephemeral", "--empty", "--addr", "127.0.0.1:0")
	up.ready(t)
	require.NotSubset(t, left(), killed, "the next start sweeps it")
	require.NoError(t, up.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 0, up.end(t))
	up.allGone(t)
	require.Empty(t, left())
}

// TestUpNamesTheServersItCannotUse has an old Redis and no memcached on PATH.
func TestUpNamesTheServersItCannotUse(t *testing.T) {
	t.Parallel()
	bin := dataFolder(t)
	require.NoError(t, os.Mkdir(bin, 0o755))
	script := "#!/bin/sh\necho 'Redis server v=2.8.17 sha=00000000:0 malloc=libc bits=64 build=0'\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "redis-server"), []byte(script), 0o755))
	up := startProgramWith(t, []string{"PATH=" + bin}, "up", "--ephemeral", "--addr", "127.0.0.1:0")
	require.Equal(t, 1, up.end(t))
	require.Contains(t, up.output(), filepath.Join(bin, "redis-server"))
	require.Contains(t, up.output(), "2.8")
	require.Contains(t, up.output(), "memcached is not installed")
	require.Empty(t, up.servers())
}

func TestRunRefusesWrongUse(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"dance"}, {"up", "--loud"}, {"up", "now"}, {"seed", "--addr", "x"}, {"up", "--ephemeral", "--data", "x"}} {
		var out bytes.Buffer
		require.ErrorIs(t, run(t.Context(), args, &out), errUsage, "%v", args)
		require.Contains(t, out.String(), "usage:")
	}
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"up", "-h"}, &out))
	require.Contains(t, out.String(), "--ephemeral")

	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "thesis.txt"), nil, 0o644))
	err := run(t.Context(), []string{"up", "--data", other, "--addr", "127.0.0.1:0"}, &out)
	require.ErrorContains(t, err, "is not empty and not a folder of photoshare")
	err = run(t.Context(), []string{"up", "--addr", "nowhere"}, &out)
	require.ErrorContains(t, err, `cannot listen on "nowhere"`)
	err = run(t.Context(), []string{"up", "--addr", ":0"}, &out)
	require.ErrorContains(t, err, "has no host")
}

// dataFolder is a folder that the servers' users can enter, which those of
// t.TempDir are not when the tests run as root.
func dataFolder(t *testing.T) string {
	dir, err := os.MkdirTemp("", "photoshare-test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o711))
	return filepath.Join(dir, "data")
}
