package pgbounce_test

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

func FuzzParseSecret(f *testing.F) {
	for _, s := range []string{
		"", "hunter2", pencil, pencil[:60], "md545f2603610af569b6155c45067268c6b", "SCRAM-SHA-256$1:AA\n==$:",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := pgbounce.ParseSecret(s)
		plain, md5, scram := k.Fields()
		if err != nil {
			require.True(t, strings.HasPrefix(s, "SCRAM-SHA-256$"))
			require.False(t, k.VerifyPlain("alice", s), "what is broken lets nobody in")
			return
		}
		if scram != nil {
			plain = scram.String()
		}
		require.Equal(t, s, plain+md5)
	})
}

func FuzzParseSecrets(f *testing.F) {
	f.Add("\"alice\" \"hunter2\"\n; x\n\"b\"\"b\" \"\"\r\n")
	f.Add("\"a\" \"b")
	f.Add("\"\"\"\" \"\"\"\" x")
	f.Fuzz(func(t *testing.T, text string) {
		secrets, err := pgbounce.ParseSecrets(strings.NewReader(text))
		if err != nil {
			require.Nil(t, secrets)
			return
		}
		var again strings.Builder
		for _, user := range slices.Sorted(maps.Keys(secrets)) {
			for _, word := range []string{user, secrets[user]} {
				again.WriteString(` "` + strings.ReplaceAll(word, `"`, `""`) + `"`)
			}
			again.WriteString("\n")
		}
		got, err := pgbounce.ParseSecrets(strings.NewReader(again.String()))
		require.NoError(t, err)
		require.Equal(t, secrets, got)
	})
}

func FuzzParseHBA(f *testing.F) {
	for _, line := range goodHBA {
		f.Add(line, "db", "alice")
	}
	for _, test := range brokenHBA {
		f.Add(test.line[:min(len(test.line), 100)], "db", "alice")
	}
	f.Fuzz(func(t *testing.T, text, database, user string) {
		if err := new(pgbounce.HBA).ParseIdent(strings.NewReader(text)); err != nil {
			require.Contains(t, err.Error(), "line ")
		}
		h, err := pgbounce.ParseHBA(strings.NewReader(text))
		if err != nil {
			require.Contains(t, err.Error(), "line ")
			require.Nil(t, h)
			return
		}
		for _, r := range h.Rules() {
			require.NotEmpty(t, append(slices.Clone(r.Databases), r.Users...))
		}
		for _, physical := range []bool{false, true} {
			for _, addr := range []string{"10.1.2.3", "::1"} {
				method, ident, ok := h.Match(database, user, tcpAddr(addr), false, physical)
				require.NotContains(t, []string{"peer", "cert"}, method, "over TCP without TLS")
				require.Equal(t, ok, method != "")
				require.Empty(t, ident)
			}
		}
		// A rule in front that rejects all decides, whatever follows.
		first, err := pgbounce.ParseHBA(strings.NewReader("host all,replication all all reject\n" + text))
		require.NoError(t, err)
		method, _, _ := first.Match(database, user, tcpAddr("::1"), true, false)
		require.Equal(t, "reject", method)
	})
}

func FuzzSCRAMServer(f *testing.F) {
	f.Add("SCRAM-SHA-256", []byte("n,,n=,r=x"), []byte("c=biws,r=x,p=AAAA"), false)
	f.Add("SCRAM-SHA-256", []byte("y,,n=,r=x,a=b"), []byte("c=eSws,r=x,p="), true)
	f.Add("SCRAM-SHA-256-PLUS", []byte("p=tls-server-end-point,,n=,r=x"), []byte(",,,"), true)
	secret := pgbounce.NewSCRAMSecret("hunter2", 1)
	f.Fuzz(func(t *testing.T, mechanism string, first, final []byte, bind bool) {
		var binding []byte
		if bind {
			binding = []byte("a certificate's hash")
		}
		s := pgbounce.NewSCRAMServer(secret, binding)
		s.SetNonce("y")
		reply, err := s.First(mechanism, first)
		if err == nil {
			require.LessOrEqual(t, len(reply), 2*pgbounce.SCRAMMaxNonce)
			require.True(t, utf8.Valid(reply))
		}
		_, key, err := s.Final(final)
		require.Error(t, err, "without the password")
		require.Nil(t, key)
	})
}

func FuzzSCRAMClient(f *testing.F) {
	f.Add("x", "AAAA", "1", "", []byte("v=AAAA"))
	f.Add("", "", "-1", ",a=b", []byte("e=other-error"))
	f.Add("\n", "AB==", "1000001", "", []byte{})
	f.Fuzz(func(t *testing.T, nonce, salt, iterations, rest string, final []byte) {
		if len(strings.TrimLeft(iterations, "0")) > 3 && len(iterations) < 8 {
			return // right, and slow
		}
		c, err := pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), []string{mechanism}, nil)
		require.NoError(t, err)
		msg := []byte("r=" + c.Nonce() + nonce + ",s=" + salt + ",i=" + iterations + rest)
		if nonce == "r" {
			msg = []byte(rest)
		}
		reply, err := c.Final(msg)
		if err == nil {
			require.LessOrEqual(t, len(reply), 2*pgbounce.SCRAMMaxNonce)
			require.True(t, bytes.HasPrefix(reply, []byte("c=biws,r="+c.Nonce())))
		}
		require.Error(t, c.Verify(final), "without the secret")
	})
}

// FuzzSCRAMHalves lets both halves agree on any password and any salt, with a
// verifier that went through its text, and only then.
func FuzzSCRAMHalves(f *testing.F) {
	f.Add("hunter2", "hunter3", uint8(1), []byte(nil))
	f.Add("ﬁsh", "fish", uint8(3), []byte("hash"))
	f.Add("\xff", "\xfe", uint8(0), []byte("hash"))
	f.Add("so\u00adft", "soft", uint8(0), []byte{})
	f.Fuzz(func(t *testing.T, password, other string, iterations uint8, binding []byte) {
		secret := mustSCRAM(t, pgbounce.NewSCRAMSecret(password, int(iterations)+1).String())
		key, err := exchange{
			keys: pgbounce.Password(password), secret: secret, clientBinding: binding, serverBinding: binding,
		}.run()
		require.NoError(t, err)
		again, err := exchange{keys: pgbounce.Key(key, secret), secret: secret, clientBinding: binding}.run()
		require.NoError(t, err)
		require.Equal(t, key, again)

		_, err = exchange{keys: pgbounce.Password(other), secret: secret}.run()
		if pgbounce.SASLPrep(password) == pgbounce.SASLPrep(other) {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, pgbounce.ErrSCRAMProof)
		}
	})
}
