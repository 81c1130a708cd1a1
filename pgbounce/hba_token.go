package pgbounce

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/netip"
	"strings"
)

// An hbaToken is a word of pg_hba.conf. One that begins with a quote is never
// a keyword.
type hbaToken struct {
	text   string
	quoted bool
}

func (t hbaToken) is(keyword string) bool { return !t.quoted && t.text == keyword }

// checkName refuses what PostgreSQL would take for more than a name.
func (t hbaToken) checkName() error {
	switch {
	case strings.HasPrefix(t.text, "/"):
		return errors.New("regular expressions are not supported")
	case !t.quoted && strings.HasPrefix(t.text, "+"):
		return errors.New("members of roles are not supported")
	}
	return nil
}

// hbaLines calls do with the fields of each line that has some.
func hbaLines(r io.Reader, do func(fields [][]hbaToken) error) error {
	lines := bufio.NewScanner(r)
	n := 1
	for ; lines.Scan(); n++ {
		fields, err := hbaFields(lines.Text())
		if err == nil && len(fields) > 0 {
			err = do(fields)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n, err)
	}
	return nil
}

const hbaSpace = " \t\r\v\f"

// hbaFields splits a line. The words of a field are joined by commas.
func hbaFields(line string) ([][]hbaToken, error) {
	var fields [][]hbaToken
	comma := false // the next word belongs to the last field
	for {
		line = strings.TrimLeft(line, hbaSpace)
		switch {
		case line == "" || line[0] == '#':
			if comma {
				return nil, errors.New("nothing after a comma")
			}
			return fields, nil
		case line[0] == ',':
			if comma || len(fields) == 0 {
				return nil, errors.New("nothing before a comma")
			}
			comma, line = true, line[1:]
			continue
		}
		token, rest, err := cutHBAToken(line)
		if err != nil {
			return nil, err
		}
		line = rest
		if comma {
			last := &fields[len(fields)-1]
			*last = append(*last, token)
		} else {
			fields = append(fields, []hbaToken{token})
		}
		comma = false
	}
}

// cutHBAToken splits a line that begins with a word. Quotes may begin and end
// anywhere in it.
func cutHBAToken(line string) (t hbaToken, rest string, err error) {
	t.quoted = line[0] == '"'
	var text strings.Builder
	quoted := false
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		switch {
		case c == '"' && quoted && strings.HasPrefix(line[i+1:], `"`):
			text.WriteByte(c)
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(hbaSpace+",#", c) >= 0:
			t.text = text.String()
			return t, line[i:], nil
		default:
			text.WriteByte(c)
		}
	}
	if quoted {
		return t, "", errors.New("a quote is not closed")
	}
	t.text = text.String()
	return t, "", nil
}

// maskBits returns how many leading bits a mask such as 255.0.0.0 has.
func maskBits(addr, mask netip.Addr) (int, bool) {
	if addr.BitLen() != mask.BitLen() {
		return 0, false
	}
	n, ended := 0, false
	for _, b := range mask.AsSlice() {
		ones := bits.LeadingZeros8(^b)
		if b<<ones != 0 || ended && b != 0 {
			return 0, false
		}
		n, ended = n+ones, ended || ones < 8
	}
	return n, true
}
