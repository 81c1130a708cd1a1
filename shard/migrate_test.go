package shard_test

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func twoNodes(t *testing.T) shard.Catalog {
	return shard.Static(8,
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)})
}

func TestMigrateGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	files := fstest.MapFS{
		"0001_a.sql": {Data: []byte("create table a (n int); insert into a values (1)")},
		"README":     {Data: []byte("not SQL")},
	}
	require.NoError(t, c.Migrate(t.Context(), files))
	require.NoError(t, c.Migrate(t.Context(), files), "again")
	files["0002_b.sql"] = &fstest.MapFile{Data: []byte("create table b (n int); insert into a values (2)")}
	require.NoError(t, c.Migrate(t.Context(), files))
	for _, s := range c.Shards() {
		var rows, version int
		require.NoError(t, s.QueryRow(t.Context(), "select count(*), (select max(version) from schema_version) from a").Scan(&rows, &version))
		require.Equal(t, 2, rows, "each file ran once")
		require.Equal(t, 2, version)
	}
}

func TestMigrateLeavesAFailedShardAsItWas(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	files := fstest.MapFS{"0001_a.sql": {Data: []byte("create table a (n int)")}}
	require.NoError(t, c.Migrate(t.Context(), files))
	_, err := c.Number(5).Exec(t.Context(), "insert into a values (0)")
	require.NoError(t, err)

	files["0002_b.sql"] = &fstest.MapFile{Data: []byte("create table b (n int)")}
	files["0003_c.sql"] = &fstest.MapFile{Data: []byte("create table c (n int); select 1 / n from a")}
	err = c.Migrate(t.Context(), files)
	require.ErrorContains(t, err, "shard 5 on node b: migration 0003_c.sql: ")
	require.NotContains(t, err.Error(), "shard 4")
	var version int
	require.NoError(t, c.Number(5).QueryRow(t.Context(), "select max(version) from schema_version").Scan(&version))
	require.Equal(t, 1, version, "no half of it")
	require.NoError(t, c.Number(4).QueryRow(t.Context(), "select max(version) from schema_version").Scan(&version))
	require.Equal(t, 3, version)

	_, err = c.Number(5).Exec(t.Context(), "delete from a")
	require.NoError(t, err)
	require.NoError(t, c.Migrate(t.Context(), files))
}

func TestMigrateRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	old := fstest.MapFS{"0001_a.sql": {Data: []byte("create table a (n int)")}}
	grown := fstest.MapFS{"0001_a.sql": old["0001_a.sql"], "0002_b.sql": {Data: []byte("create table b (n int)")}}
	require.NoError(t, c.Migrate(t.Context(), grown))
	require.ErrorIs(t, c.Migrate(t.Context(), old), shard.ErrNewer)
	edited := fstest.MapFS{"0001_a.sql": {Data: []byte("create table a (n bigint)")}, "0002_b.sql": grown["0002_b.sql"]}
	require.ErrorIs(t, c.Migrate(t.Context(), edited), shard.ErrChanged)

	for name, files := range map[string]fstest.MapFS{
		"NoFile":     {},
		"NoNumber":   {"users.sql": {}},
		"Gap":        {"0001_a.sql": {}, "0003_c.sql": {}},
		"SameNumber": {"0001_a.sql": {}, "0001_b.sql": {}},
	} {
		require.Error(t, c.Migrate(t.Context(), files), name)
	}
}

func TestMigrateRefusesAFileThatEndsTheTransaction(t *testing.T) {
	t.Parallel()
	c := open(t, twoNodes(t), shard.Config{})
	err := c.Migrate(t.Context(), fstest.MapFS{"0001_a.sql": {Data: []byte("create table a (n int); commit")}})
	require.ErrorContains(t, err, "migration 0001_a.sql: it ends the transaction")
	require.Error(t, c.Migrate(t.Context(), nil))
}

func TestMigrateRunsInTwoProgramsAtOnce(t *testing.T) {
	t.Parallel()
	cat := shard.Static(8, shard.Node{Name: "a", DSN: testserver.Postgres(t) + "&default_transaction_isolation=repeatable%20read"})
	one, two := open(t, cat, shard.Config{}), open(t, cat, shard.Config{})
	other := make(chan error)
	go func() { other <- one.Migrate(t.Context(), notes) }()
	require.NoError(t, two.Migrate(t.Context(), notes))
	require.NoError(t, <-other)
}
