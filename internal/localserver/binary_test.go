package localserver_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/stretchr/testify/require"
)

func TestAvailable(t *testing.T) {
	t.Parallel()
	require.NoError(t, localserver.Available(
		localserver.KindPostgres, localserver.KindPgBouncer, localserver.KindRedis, localserver.KindSentinel,
		localserver.KindMemcached))
}

// script makes a program that prints a line.
func script(t *testing.T, dir, name, prints string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	text := "#!/bin/sh\necho '" + prints + "'\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
}

func TestUnfitProgram(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name          string
		kind          localserver.Kind
		binary        string
		prints, found string
		want          string
	}{
		{"OldPostgres", localserver.KindPostgres, "postgres", "postgres (PostgreSQL) 14.22 (Debian 14.22-1)", "14.22", "15.0"},
		{"OldPostgresBeta", localserver.KindPostgres, "postgres", "postgres (PostgreSQL) 14beta1", "14", "15.0"},
		{"OldPgBouncer", localserver.KindPgBouncer, "pgbouncer", "PgBouncer 1.17.0", "1.17", "1.18"},
		{"OldRedis", localserver.KindRedis, "redis-server", "Redis server v=6.2.14 sha=0:0 bits=64", "6.2", "7.0"},
		{"OldSentinel", localserver.KindSentinel, "redis-server", "Redis server v=6.2.14 sha=0:0 bits=64", "6.2", "7.0"},
		{"OldMemcached", localserver.KindMemcached, "memcached", "memcached 1.5.22", "1.5", "1.6"},
		{"NotWhatItSays", localserver.KindMemcached, "memcached", "hello", "hello", "1.6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t)
			script(t, filepath.Join(dir, "bin"), tt.binary, tt.prints)
			h := open(t, localserver.Config{Fast: true, Path: []string{filepath.Join(dir, "bin")}})
			err := start(t, h, tt.kind)
			var unfit *localserver.VersionError
			require.ErrorAs(t, err, &unfit)
			require.Equal(t, &localserver.VersionError{
				Binary: filepath.Join(dir, "bin", tt.binary), Found: tt.found, Want: tt.want,
			}, unfit)
			require.Empty(t, h.Servers())
		})
	}
}

func start(t *testing.T, h *localserver.Host, kind localserver.Kind) error {
	t.Helper()
	var err error
	switch kind {
	case localserver.KindPostgres:
		_, err = h.Postgres(t.Context(), "s", localserver.PostgresConfig{})
	case localserver.KindPgBouncer:
		_, err = h.PgBouncer(t.Context(), "s", localserver.PgBouncerConfig{Of: &localserver.Postgres{}})
	case localserver.KindRedis:
		_, err = h.Redis(t.Context(), "s", localserver.RedisConfig{})
	case localserver.KindSentinel:
		_, err = h.Sentinel(t.Context(), "s", localserver.SentinelConfig{Primary: &localserver.Redis{}})
	case localserver.KindMemcached:
		_, err = h.Memcached(t.Context(), "s", localserver.MemcachedConfig{})
	}
	return err
}

func TestMissingProgram(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	// Neither a folder nor a file without the right to run is a program.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "redis-server"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "memcached"), nil, 0o644))
	h := open(t, localserver.Config{Fast: true, Path: []string{dir}})
	for kind, want := range map[localserver.Kind]localserver.MissingError{
		localserver.KindPostgres:  {Binary: "postgres", Install: "postgresql"},
		localserver.KindPgBouncer: {Binary: "pgbouncer", Install: "pgbouncer"},
		localserver.KindRedis:     {Binary: "redis-server", Install: "redis-server"},
		localserver.KindMemcached: {Binary: "memcached", Install: "memcached"},
	} {
		var missing *localserver.MissingError
		require.ErrorAs(t, start(t, h, kind), &missing)
		require.Equal(t, want, *missing)
	}
}

func TestOldProgramIsPassedOverForALaterOne(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	old, current := filepath.Join(dir, "old"), filepath.Join(dir, "new")
	script(t, old, "memcached", "memcached 1.4.0")
	require.NoError(t, os.MkdirAll(current, 0o755))
	wrapper := "#!/bin/sh\nPATH=$PATH:/usr/sbin exec memcached \"$@\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(current, "memcached"), []byte(wrapper), 0o755))
	h := open(t, localserver.Config{Fast: true, Path: []string{old, current}})
	require.NoError(t, start(t, h, localserver.KindMemcached))
}

func TestDataOfAnotherMajorVersion(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	data := filepath.Join(dir, "s/data")
	require.NoError(t, os.MkdirAll(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("99\n"), 0o600))
	h := open(t, localserver.Config{Dir: dir})
	err := start(t, h, localserver.KindPostgres)
	var missing *localserver.MissingError
	require.ErrorAs(t, err, &missing)
	require.Equal(t, localserver.MissingError{Binary: "postgres", Version: "99", Install: "postgresql-99"}, *missing)
	require.ErrorContains(t, err, "holds data of version 99")
}

func TestDataPicksItsOwnMajorVersion(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	data := filepath.Join(dir, "s/data")
	require.NoError(t, os.MkdirAll(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("16\n"), 0o600))
	path := []string{filepath.Join(dir, "17"), filepath.Join(dir, "16")}
	script(t, path[0], "postgres", "postgres (PostgreSQL) 17.1")
	script(t, path[1], "postgres", "postgres (PostgreSQL) 16.1")
	h := open(t, localserver.Config{Dir: dir, Path: path})
	// It is no server: what it prints as one tells which was started.
	err := start(t, h, localserver.KindPostgres)
	require.ErrorContains(t, err, "postgres (PostgreSQL) 16.1")
}

func TestNewestPostgresFirst(t *testing.T) {
	t.Parallel()
	dirs := []string{"/usr/lib/postgresql/9/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin"}
	localserver.NewestFirst(dirs)
	require.Equal(t, []string{
		"/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/9/bin",
	}, dirs)
}
