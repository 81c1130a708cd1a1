package pgbounce

import (
	"bufio"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A secret is what a user's password is checked against, as PostgreSQL's
// pg_authid and PgBouncer's userlist.txt have it. One field is set, or none for
// a user who cannot log in with a password.
type secret struct {
	plain string
	md5   string // "md5" and 32 hex digits
	scram *scramSecret
}

// parseSecret tells the kinds apart as PostgreSQL does, with one difference: a
// broken SCRAM secret is an error, not a password that happens to look like
// one. The error does not have the secret.
func parseSecret(s string) (secret, error) {
	switch {
	case strings.HasPrefix(s, scramMechanism+"$"):
		k, err := parseSCRAMSecret(s)
		return secret{scram: k}, err
	case isMD5(s):
		return secret{md5: s}, nil
	}
	return secret{plain: s}, nil
}

func isMD5(s string) bool {
	digits, ok := strings.CutPrefix(s, "md5")
	return ok && len(digits) == 2*md5.Size && strings.Trim(digits, "0123456789abcdef") == ""
}

// md5Secret is what PostgreSQL keeps of an md5 password.
func md5Secret(user, password string) string { return md5Hex(password, user) }

// md5Answer is what a client that knows the md5 secret sends.
func md5Answer(secret string, salt [4]byte) string {
	return md5Hex(strings.TrimPrefix(secret, "md5"), string(salt[:]))
}

func md5Hex(text, salt string) string {
	sum := md5.Sum([]byte(text + salt))
	return "md5" + hex.EncodeToString(sum[:])
}

// verifyPlain tells whether a password that a client sent in the clear is the
// user's. With a SCRAM secret it costs its iterations.
func (s secret) verifyPlain(user, password string) bool {
	switch {
	case password == "": // no password, to PostgreSQL
		return false
	case s.plain != "":
		return equal(s.plain, password)
	case s.md5 != "":
		return equal(s.md5, md5Secret(user, password))
	case s.scram != nil && !s.scram.mock:
		_, k, err := deriveSCRAM(password, s.scram.salt, s.scram.iterations)
		return err == nil && hmac.Equal(k.serverKey, s.scram.serverKey)
	}
	return false
}

// verifyMD5 tells whether a client's answer to a salt is the user's. A SCRAM
// secret cannot tell.
func (s secret) verifyMD5(user string, salt [4]byte, answer string) bool {
	switch {
	case s.plain != "":
		return equal(md5Answer(md5Secret(user, s.plain), salt), answer)
	case s.md5 != "":
		return equal(md5Answer(s.md5, salt), answer)
	}
	return false
}

// scramFor returns what a SCRAM login of the user is checked against. All kinds
// of users, and those who do not exist, look the same to who tries names: the
// salt of a name never changes as long as the key does not.
//
// A plain secret costs 4096 iterations here, so the result is worth keeping.
func (s secret) scramFor(user string, key []byte) *scramSecret {
	switch {
	case s.scram != nil:
		return s.scram
	case s.plain != "":
		_, k, err := deriveSCRAM(s.plain, mockSalt(user, key), scramIterations)
		if err == nil {
			return k
		}
	}
	return mockSCRAMSecret(user, key)
}

// equal compares in a time that does not tell how much of the two agrees.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return hmac.Equal(x[:], y[:])
}

// ParseSecrets reads PgBouncer's userlist.txt, whose lines are
//
//	"user" "secret"
//
// with "" for a quote inside quotes. Further fields are ignored, as are lines
// that begin with ; or #. Of two lines for a user the last one counts. Errors
// name the line, and never a secret.
func ParseSecrets(r io.Reader) (map[string]string, error) {
	secrets := map[string]string{}
	lines := bufio.NewScanner(r)
	n := 1
	for ; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		user, password, err := parseSecretLine(line)
		if err == nil {
			_, err = parseSecret(password)
		}
		if err != nil {
			return nil, fmt.Errorf("pgbounce: parse secrets: line %d: %w", n, err)
		}
		secrets[user] = password
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("pgbounce: parse secrets: line %d: %w", n, err)
	}
	return secrets, nil
}

func parseSecretLine(line string) (user, password string, err error) {
	user, rest, ok := cutQuoted(line)
	if !ok {
		return "", "", errors.New("want a user in quotes")
	}
	password, _, ok = cutQuoted(strings.TrimLeft(rest, " \t"))
	if !ok {
		return "", "", errors.New("want a secret in quotes after the user")
	}
	return user, password, nil
}

// cutQuoted splits what is in quotes at the begin of s from the rest.
func cutQuoted(s string) (text, rest string, ok bool) {
	s, ok = strings.CutPrefix(s, `"`)
	if !ok {
		return "", "", false
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `"`)
		b.WriteString(before)
		if !ok {
			return "", "", false
		}
		s, ok = strings.CutPrefix(after, `"`)
		if !ok {
			return b.String(), after, true
		}
		b.WriteByte('"')
	}
}
