package pgbounce_test

import (
	"strings"
	"testing"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

func TestRouteCommands(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]string{
		"set pgbounce.shard = '17'":                                   "pgbounce.shard=17",
		"SET pgbounce.shard TO 17;":                                   "pgbounce.shard=17",
		" \n set\tsession Pgbounce.Shard='a' ; \n":                    "pgbounce.shard=a",
		"set pgbounce.shard = 'key:o''neil'":                          "pgbounce.shard=key:o'neil",
		"set pgbounce.shard = 'key:a  b;'":                            "pgbounce.shard=key:a  b;",
		`set pgbounce.shard = "key:a""b'c"`:                           `pgbounce.shard=key:a"b'c`,
		"set pgbounce.shard=' '":                                      "pgbounce.shard= ",
		"set pgbounce.shard = ''":                                     "pgbounce.shard=",
		"set pgbounce.shard = default":                                "pgbounce.shard=",
		"set pgbounce.shard = 'default'":                              "pgbounce.shard=default",
		"reset pgbounce.shard":                                        "pgbounce.shard=",
		"RESET PGBOUNCE.READ_ONLY;":                                   "pgbounce.read_only=",
		"set pgbounce.read_only = on":                                 "pgbounce.read_only=on",
		"set pgbounce.shard = 'key:" + strings.Repeat("x", 900) + "'": "pgbounce.shard=key:" + strings.Repeat("x", 900),

		// These are PostgreSQL's.
		"set local pgbounce.shard = '17'":      "",
		"set pgbounce.shards = '17'":           "",
		"set pgbounce.shard '17'":              "",
		"set pgbounce.shard =":                 "",
		"set pgbounce.shard = 'a' 'b'":         "",
		"set pgbounce.shard = 'a":              "",
		"set pgbounce.shard = a b":             "",
		"set pgbounce.shard = '1'; select 1":   "",
		"set pgbounce.shard = 1; select 1":     "",
		"set pgbounce.shard = '1'; select '1'": "",
		"reset pgbounce.shard; select 1":       "",
		"reset all":                            "",
		"settle pgbounce.shard = '1'":          "",
		"update x set pgbounce.shard = '17'":   "",
		"set search_path = pgbounce.shard":     "",
		"set":                                  "",
		"":                                     "",
	} {
		got, again, ok := pgbounce.RouteCommand(sql)
		if want == "" {
			require.False(t, ok, sql)
			continue
		}
		require.True(t, ok, sql)
		require.Equal(t, want, got, sql)
		require.Equal(t, want, again, "what is prepared in its place: %s", sql)
	}
}
