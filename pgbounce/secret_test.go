package pgbounce_test

import (
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

// pencil is RFC 7677's example as PostgreSQL would keep it.
const pencil = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$" +
	"WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="

func mustSecret(t testing.TB, s string) pgbounce.Secret {
	t.Helper()
	k, err := pgbounce.ParseSecret(s)
	require.NoError(t, err)
	return k
}

func mustSCRAM(t testing.TB, s string) *pgbounce.SCRAMSecret {
	t.Helper()
	_, _, k := mustSecret(t, s).Fields()
	require.NotNil(t, k)
	return k
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, text, plain, md5, scram string }{
		{name: "Empty"},
		{name: "Plain", text: "hunter2", plain: "hunter2"},
		{
			name: "MD5", text: "md545f2603610af569b6155c45067268c6b",
			md5: "md545f2603610af569b6155c45067268c6b",
		},
		{
			name: "UpperCaseIsNoMD5", text: "md545F2603610AF569B6155C45067268C6B",
			plain: "md545F2603610AF569B6155C45067268C6B",
		},
		{
			name: "ShortIsNoMD5", text: "md545f2603610af569b6155c45067268c6",
			plain: "md545f2603610af569b6155c45067268c6",
		},
		{name: "SCRAM", text: pencil, scram: pencil},
		{name: "OtherSCRAMIsPlain", text: "SCRAM-SHA-1$x", plain: "SCRAM-SHA-1$x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, err := pgbounce.ParseSecret(test.text)
			require.NoError(t, err)
			plain, md5, scram := s.Fields()
			require.Equal(t, test.plain, plain)
			require.Equal(t, test.md5, md5)
			if test.scram == "" {
				require.Nil(t, scram)
				return
			}
			require.Equal(t, test.scram, scram.String())
		})
	}
}

func TestParseSecretBroken(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("A", 43) + "="
	salt := func(n int) string { return strings.Repeat("AAAA", n/3) }
	for _, test := range []struct{ name, text string }{
		{"Bare", "SCRAM-SHA-256$"},
		{"Truncated", pencil[:len(pencil)-1]},
		{"HalfGone", pencil[:len(pencil)-45]},
		{"OneMore", pencil + "A"},
		{"NoIterations", "SCRAM-SHA-256$:AAAA$" + key + ":" + key},
		{"ZeroIterations", "SCRAM-SHA-256$0:AAAA$" + key + ":" + key},
		{"NegativeIterations", "SCRAM-SHA-256$-1:AAAA$" + key + ":" + key},
		{"SignedIterations", "SCRAM-SHA-256$+1:AAAA$" + key + ":" + key},
		{"LeadingZero", "SCRAM-SHA-256$01:AAAA$" + key + ":" + key},
		{"TooManyIterations", "SCRAM-SHA-256$1000001:AAAA$" + key + ":" + key},
		{"OverflowingIterations", "SCRAM-SHA-256$99999999999999999999:AAAA$" + key + ":" + key},
		{"NoSalt", "SCRAM-SHA-256$1:$" + key + ":" + key},
		{"LongSalt", "SCRAM-SHA-256$1:" + salt(pgbounce.SCRAMMaxSalt+3) + "$" + key + ":" + key},
		{"NewlineInSalt", "SCRAM-SHA-256$1:AA\nAA$" + key + ":" + key},
		{"BitsAfterSalt", "SCRAM-SHA-256$1:AB==$" + key + ":" + key},
		{"ShortKey", "SCRAM-SHA-256$1:AAAA$AAAA:" + key},
		{"LongKey", "SCRAM-SHA-256$1:AAAA$" + key + ":" + salt(36)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := pgbounce.ParseSecret(test.text)
			require.Error(t, err)
			for _, part := range strings.FieldsFunc(test.text, func(r rune) bool { return r == '$' || r == ':' })[1:] {
				if len(part) > 3 {
					require.NotContains(t, err.Error(), part)
				}
			}
		})
	}
	_, err := pgbounce.ParseSecret("SCRAM-SHA-256$1000000:" + salt(pgbounce.SCRAMMaxSalt) + "$" + key + ":" + key)
	require.NoError(t, err, "the limits themselves are allowed")
}

func TestVerifyPlain(t *testing.T) {
	t.Parallel()
	const user, password = "admin", "1234"
	// From PgBouncer's manual.
	require.Equal(t, "md545f2603610af569b6155c45067268c6b", pgbounce.MD5Secret(user, password))
	for name, text := range map[string]string{
		"Plain": password,
		"MD5":   pgbounce.MD5Secret(user, password),
		"SCRAM": pgbounce.NewSCRAMSecret(password, 2).String(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustSecret(t, text)
			require.True(t, s.VerifyPlain(user, password))
			for _, wrong := range []string{"", "123", "12345", "1235", " 1234", text + " ", "\x00"} {
				require.False(t, s.VerifyPlain(user, wrong), "%q", wrong)
			}
			if name != "Plain" {
				require.False(t, s.VerifyPlain(user, text), "the secret is not the password")
			}
			if name == "MD5" {
				require.False(t, s.VerifyPlain("another", password))
			}
		})
	}
	none := mustSecret(t, "")
	require.False(t, none.VerifyPlain(user, ""))
	require.False(t, mustSecret(t, pgbounce.MD5Secret(user, "")).VerifyPlain(user, ""), "no password is none")
	require.False(t, mustSecret(t, pgbounce.NewSCRAMSecret("", 2).String()).VerifyPlain(user, ""))
	require.False(t, none.VerifyPlain(user, password))
}

func TestVerifyMD5(t *testing.T) {
	t.Parallel()
	const user, password = "admin", "1234"
	salt := [4]byte{1, 0, 254, ','}
	answer := pgbounce.MD5Answer(pgbounce.MD5Secret(user, password), salt)
	require.Len(t, answer, 35)
	for name, text := range map[string]string{"Plain": password, "MD5": pgbounce.MD5Secret(user, password)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := mustSecret(t, text)
			require.True(t, s.VerifyMD5(user, salt, answer))
			require.False(t, s.VerifyMD5(user, [4]byte{2, 0, 254, ','}, answer), "replayed with another salt")
			require.False(t, s.VerifyMD5(user, salt, ""))
			require.False(t, s.VerifyMD5(user, salt, answer[:34]))
			require.False(t, s.VerifyMD5(user, salt, answer+"0"))
			require.False(t, s.VerifyMD5(user, salt, text), "the secret is not the answer")
		})
	}
	require.False(t, mustSecret(t, password).VerifyMD5("another", salt, answer))
	require.False(t, mustSecret(t, pgbounce.MD5Secret("another", password)).VerifyMD5(user, salt, answer))
	require.False(t, mustSecret(t, pencil).VerifyMD5(user, salt, answer))
	require.False(t, mustSecret(t, "").VerifyMD5(user, salt, pgbounce.MD5Answer("", salt)))
}

func TestParseSecrets(t *testing.T) {
	t.Parallel()
	got, err := pgbounce.ParseSecrets(strings.NewReader(strings.Join([]string{
		`; a comment with "quotes" "inside"`,
		`# another`,
		``,
		`"alice" "wonder land"`,
		"  \t\"bob\"\t \"md545f2603610af569b6155c45067268c6b\" \"ignored\" also ignored ; and this",
		`"quo""ted" """a""b"""` + "\r",
		`"empty" ""`,
		`"carol" "` + pencil + `"`,
		`"käthe" "straße;#"`,
		`"twice" "first"`,
		`"twice" "last"`,
		`"touching""" "x"y`,
	}, "\n")))
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"alice":     "wonder land",
		"bob":       "md545f2603610af569b6155c45067268c6b",
		`quo"ted`:   `"a"b"`,
		"empty":     "",
		"carol":     pencil,
		"käthe":     "straße;#",
		"twice":     "last",
		`touching"`: "x",
	}, got)

	got, err = pgbounce.ParseSecrets(strings.NewReader(""))
	require.NoError(t, err)
	require.Empty(t, got)
	require.NotNil(t, got)
}

func TestParseSecretsBroken(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, line string }{
		{"NoQuotes", `alice hunter2`},
		{"OneField", `"hunter2"`},
		{"OpenUser", `"hunter2`},
		{"OpenSecret", `"alice" "hunter2`},
		{"DoubledAtEnd", `"alice" "hunter2""`},
		{"BareSecret", `"alice" hunter2`},
		{"Comma", `"alice", "hunter2"`},
		{"BrokenSCRAM", `"alice" "SCRAM-SHA-256$4096:hunter2$:"`},
		{"LongLine", `"alice" "hunter2` + strings.Repeat("x", 1<<16) + `"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := pgbounce.ParseSecrets(strings.NewReader("\"ok\" \"ok\"\n\n" + test.line + "\n\"ok\" \"ok\"\n"))
			require.ErrorContains(t, err, "pgbounce: parse secrets: line 3: ")
			require.NotContains(t, err.Error(), "hunter2")
			require.Nil(t, got)
		})
	}
	broken := errors.New("the disk is gone")
	_, err := pgbounce.ParseSecrets(iotest.ErrReader(broken))
	require.ErrorIs(t, err, broken)
}
