package idgen_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"math"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestParseReadsWhatStringWrites(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := idgen.ID(rapid.Int64Range(1, math.MaxInt64).Draw(t, "id"))
		got, err := idgen.Parse(id.String())
		require.NoError(t, err)
		require.Equal(t, id, got)
		short := id.Short()
		require.LessOrEqual(t, len(short), 11)
		got, err = idgen.ParseShort(short)
		require.NoError(t, err)
		require.Equal(t, id, got)
	})
	for _, s := range []string{"", "0", "-1", "+1", "01", "1 ", "x", "9223372036854775808"} {
		_, err := idgen.Parse(s)
		require.Error(t, err, "%q", s)
	}
	for _, s := range []string{"", "A", "AB", "B=", "B\n", "é", "IAAAAAAAAAA", "BAAAAAAAAAAA", "________________"} {
		_, err := idgen.ParseShort(s)
		require.Error(t, err, "%q", s)
	}
	require.Equal(t, "H__________", idgen.MaxID.Short())
}

func FuzzParseShort(f *testing.F) {
	f.Add("H__________")
	f.Add("B")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := idgen.ParseShort(s)
		if err == nil && (id <= 0 || id.Short() != s) {
			t.Fatalf("%q is read as %d, whose code is %q", s, id, id.Short())
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("1")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := idgen.Parse(s)
		if err == nil && (id <= 0 || id.String() != s) {
			t.Fatalf("%q is read as %d", s, id)
		}
	})
}

func anyID(t *rapid.T, from int64) idgen.ID {
	return idgen.ID(rapid.Int64Range(from, math.MaxInt64).Draw(t, "id"))
}

func TestTextAndJSONReadWhatTheyWrite(t *testing.T) {
	t.Parallel()
	type photo struct {
		ID    idgen.ID          `json:"id"`
		Next  *idgen.ID         `json:"next"`
		Other idgen.ID          `json:"other,omitzero"`
		Likes map[idgen.ID]bool `json:"likes,omitempty"`
		All   []idgen.ID        `json:"all"`
	}
	rapid.Check(t, func(t *rapid.T) {
		id := anyID(t, 0)
		text, err := id.MarshalText()
		require.NoError(t, err)
		require.Equal(t, id.String(), string(text))
		got := idgen.ID(7)
		require.NoError(t, got.UnmarshalText(text))
		require.Equal(t, id, got)
		appended, err := id.AppendText([]byte("id="))
		require.NoError(t, err)
		require.Equal(t, "id="+id.String(), string(appended))

		in := photo{ID: id, Next: &id, Other: id, Likes: map[idgen.ID]bool{id: true}, All: []idgen.ID{id, 1}}
		b, err := json.Marshal(in)
		require.NoError(t, err)
		var out photo
		require.NoError(t, json.Unmarshal(b, &out))
		require.Equal(t, in, out)
		require.NoError(t, json.Unmarshal([]byte(strconv.FormatInt(int64(id), 10)), &got), "a number")
		require.Equal(t, id, got)
	})
	b, err := json.Marshal(photo{ID: 653247040368672768})
	require.NoError(t, err)
	require.JSONEq(t, `{"id": "653247040368672768", "next": null, "all": null}`, string(b))

	id := idgen.ID(7)
	require.NoError(t, json.Unmarshal([]byte("null"), &id))
	require.Equal(t, idgen.ID(7), id)
	for _, bad := range []string{`""`, `"-1"`, `-1`, `1.0`, `1e3`, `"01"`, `" 1"`, `"0x1"`, `9223372036854775808`, `"1`, `"`, `true`, `{}`, `[]`, `"null"`, `"+1"`, `"1_0"`} {
		require.Error(t, id.UnmarshalJSON([]byte(bad)), "%s", bad)
		require.Equal(t, idgen.ID(7), id, "%s", bad)
	}
}

func TestScanReadsWhatValueGives(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := anyID(t, 0)
		value, err := id.Value()
		require.NoError(t, err)
		require.Equal(t, int64(id), value)
		for _, src := range []any{value, id.String(), []byte(id.String())} {
			got := idgen.ID(7)
			require.NoError(t, got.Scan(src))
			require.Equal(t, id, got)
		}
	})
	id := idgen.ID(7)
	for _, bad := range []any{nil, int64(-1), "-1", "", "x", []byte(nil), 1.0, true} {
		require.Error(t, id.Scan(bad), "%v", bad)
		require.Equal(t, idgen.ID(7), id)
	}
}

func FuzzUnmarshalJSON(f *testing.F) {
	for _, seed := range []string{"null", "0", `"0"`, "1", `"9223372036854775807"`, `"9223372036854775808"`, `"1`, `"`, "1e3", "-0"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id := idgen.ID(7)
		if err := json.Unmarshal([]byte(text), &id); err != nil {
			if id != 7 {
				t.Fatalf("%q is an error, and changes the ID to %d", text, id)
			}
			return
		}
		if id < 0 {
			t.Fatalf("%q is read as %d", text, id)
		}
		b, err := json.Marshal(id)
		if err != nil {
			t.Fatal(err)
		}
		var again idgen.ID
		if err := json.Unmarshal(b, &again); err != nil || again != id {
			t.Fatalf("%q is read as %d, which is read back as %d: %v", text, id, again, err)
		}
		// What is no string or null must be what a decoder of numbers reads.
		var number int64
		if json.Unmarshal([]byte(text), &number) == nil && id != 7 && number != int64(id) {
			t.Fatalf("%q is read as %d", text, id)
		}
	})
}

func FuzzScan(f *testing.F) {
	for _, seed := range []string{"0", "1", "00", "9223372036854775807", "9223372036854775808", "-1", "", "1 "} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		fromString, fromBytes := idgen.ID(7), idgen.ID(7)
		err, errBytes := fromString.Scan(text), fromBytes.Scan([]byte(text))
		if (err == nil) != (errBytes == nil) || fromString != fromBytes {
			t.Fatalf("%q is read as %d from a string, as %d from bytes", text, fromString, fromBytes)
		}
		if err == nil && fromString.String() != text || err != nil && fromString != 7 {
			t.Fatalf("%q is read as %d: %v", text, fromString, err)
		}
	})
}

// modes are pgx's ways to send arguments.
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// list is an argument for any($1). Where pgx does not ask the server for the
// types, it has none for a slice of anything but its own.
func list(mode pgx.QueryExecMode, ids ...idgen.ID) any {
	if mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol {
		return ids
	}
	var numbers []int64
	for _, id := range ids {
		numbers = append(numbers, int64(id))
	}
	return numbers
}

func TestPgxReadsAndWritesIDs(t *testing.T) {
	t.Parallel()
	conn := connect(t, testserver.Postgres(t))
	run(t, conn, "create table photo (id bigint primary key, next bigint, others bigint[])")
	const id, next = idgen.ID(653247040368672768), idgen.MaxID
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			run(t, conn, "truncate photo")
			run(t, conn, "insert into photo values ($1, $2, $3)", mode, id, new(next), list(mode, id, next))
			run(t, conn, "insert into photo values ($1, $2, $3)", mode, next, (*idgen.ID)(nil), list(mode))

			var a idgen.ID
			var b *idgen.ID
			var n sql.Null[idgen.ID]
			var others []idgen.ID
			const query = "select id, next, next, others from photo where id = $1"
			require.NoError(t, conn.QueryRow(t.Context(), query, mode, id).Scan(&a, &b, &n, &others))
			require.Equal(t, id, a)
			require.Equal(t, new(next), b)
			require.Equal(t, sql.Null[idgen.ID]{V: next, Valid: true}, n)
			require.Equal(t, []idgen.ID{id, next}, others)
			require.NoError(t, conn.QueryRow(t.Context(), query, mode, next).Scan(&a, &b, &n, &others))
			require.Equal(t, next, a)
			require.Nil(t, b)
			require.False(t, n.Valid)
			require.Nil(t, others)
			require.Error(t, conn.QueryRow(t.Context(), "select null::bigint", mode).Scan(&a), "null is no ID")

			require.Equal(t, 2, get[int](t, conn, "select count(*) from photo where id = any($1)", mode, list(mode, id, next, 1)))
			rows, err := conn.Query(t.Context(), "select id from photo order by id", mode)
			require.NoError(t, err)
			ids, err := pgx.CollectRows(rows, pgx.RowTo[idgen.ID])
			require.NoError(t, err)
			require.Equal(t, []idgen.ID{id, next}, ids)
			run(t, conn, "update photo set next = $1 where id = $2", mode, sql.Null[idgen.ID]{}, id)
			require.Equal(t, 2, get[int](t, conn, "select count(*) from photo where next is null"))
		})
	}

	run(t, conn, "truncate photo")
	copied, err := conn.CopyFrom(t.Context(), pgx.Identifier{"photo"}, []string{"id", "next", "others"}, pgx.CopyFromRows([][]any{
		{id, new(next), []idgen.ID{id}}, {next, nil, nil}, {idgen.ID(1), (*idgen.ID)(nil), []idgen.ID{}},
	}))
	require.NoError(t, err)
	require.Equal(t, int64(3), copied)
	require.Equal(t, id, get[idgen.ID](t, conn, "select id from photo where next = $1 and others = $2", next, []idgen.ID{id}))
}

func TestDatabaseSQLReadsAndWritesIDs(t *testing.T) {
	t.Parallel()
	cfg, err := pgx.ParseConfig(testserver.Postgres(t))
	require.NoError(t, err)
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	ctx := context.Background()
	_, err = db.ExecContext(ctx, "create table photo (id bigint primary key, next bigint)")
	require.NoError(t, err)
	const id = idgen.ID(653247040368672768)
	_, err = db.ExecContext(ctx, "insert into photo values ($1, $2), ($3, $4), ($5, $6)",
		id, new(idgen.MaxID), idgen.ID(1), (*idgen.ID)(nil), idgen.ID(2), sql.Null[idgen.ID]{})
	require.NoError(t, err)

	var a idgen.ID
	var b *idgen.ID
	var n sql.Null[idgen.ID]
	require.NoError(t, db.QueryRowContext(ctx, "select id, next, next from photo where id = $1", id).Scan(&a, &b, &n))
	require.Equal(t, id, a)
	require.Equal(t, new(idgen.MaxID), b)
	require.Equal(t, sql.Null[idgen.ID]{V: idgen.MaxID, Valid: true}, n)
	for _, row := range []idgen.ID{1, 2} {
		require.NoError(t, db.QueryRowContext(ctx, "select next, next from photo where id = $1", row).Scan(&b, &n))
		require.Nil(t, b)
		require.False(t, n.Valid)
	}
	require.Error(t, db.QueryRowContext(ctx, "select null::bigint").Scan(&a))
	var count int
	require.NoError(t, db.QueryRowContext(ctx, "select count(*) from photo where id = any($1)", []idgen.ID{id, 1}).Scan(&count))
	require.Equal(t, 2, count)
	require.NoError(t, db.QueryRowContext(ctx, "select id::text from photo where id = $1", id).Scan(&a), "from text")
	require.Equal(t, id, a)
}
