package idgen

import (
	"cmp"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// An ID is a time-sortable 64-bit number: a PostgreSQL bigint, which pgx reads
// and writes without registration, also in slices (but as an argument not in its
// modes Exec and SimpleProtocol, which take a []int64). 0 is no ID.
//
// Its text is decimal. In JSON it is a string, as JavaScript's numbers hold
// only 53 bits; a string and a number are both read.
type ID int64

// MaxID is the cursor above every ID. No generator makes it.
const MaxID ID = math.MaxInt64

// String returns the ID in decimal.
func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

// Parse reads what String returns for an ID: a positive decimal number, without
// sign, space or leading zero.
func Parse(s string) (ID, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, fmt.Errorf("idgen: %.40q is no ID", s)
	}
	return ID(n), nil
}

// alphabet is that of base64url, in which a code needs no escape in a URL.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// Short returns the ID as a code for URLs: the number in base 64, in at most 11
// letters, digits, '-' and '_'. Instagram's photo links carry the same code.
// Codes do not sort as their IDs do.
func (id ID) Short() string {
	var b [11]byte
	i := len(b)
	for n := uint64(id); n > 0 || i == len(b); n >>= 6 {
		i--
		b[i] = alphabet[n&63]
	}
	return string(b[i:])
}

// ParseShort reads what Short returns for an ID, which is above 0. Every ID has
// exactly one code.
func ParseShort(s string) (ID, error) {
	var n uint64
	for i := range len(s) {
		digit := strings.IndexByte(alphabet, s[i])
		if digit < 0 || n > math.MaxInt64>>6 {
			return 0, fmt.Errorf("idgen: %.40q is no short ID", s)
		}
		n = n<<6 | uint64(digit)
	}
	if n == 0 || s[0] == alphabet[0] {
		return 0, fmt.Errorf("idgen: %.40q is no short ID", s)
	}
	return ID(n), nil
}

// Compare returns -1, 0 or +1, as [cmp.Compare] does. Of two IDs of one shard
// the smaller one was made first.
func (id ID) Compare(other ID) int { return cmp.Compare(id, other) }

// IsZero reports whether the ID is 0, which is no ID. It makes the JSON option
// omitzero work.
func (id ID) IsZero() bool { return id == 0 }

// AppendText appends the ID in decimal.
func (id ID) AppendText(b []byte) ([]byte, error) {
	return strconv.AppendInt(b, int64(id), 10), nil
}

// MarshalText writes the ID in decimal.
func (id ID) MarshalText() ([]byte, error) { return id.AppendText(nil) }

// UnmarshalText reads what MarshalText writes for an ID, or for 0.
func (id *ID) UnmarshalText(b []byte) error {
	if string(b) == "0" {
		*id = 0
		return nil
	}
	v, err := Parse(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// MarshalJSON writes the ID as a string.
func (id ID) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 21), '"')
	b = strconv.AppendInt(b, int64(id), 10)
	return append(b, '"'), nil
}

// UnmarshalJSON reads a string or a number in decimal, without fraction and
// exponent. It leaves the ID as it is on null.
func (id *ID) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	if len(b) >= 2 && b[0] == '"' && b[len(b)-1] == '"' {
		b = b[1 : len(b)-1]
	}
	return id.UnmarshalText(b)
}

// Value gives the ID to database/sql as an int64.
func (id ID) Value() (driver.Value, error) { return int64(id), nil }

// Scan reads an ID, or 0, from database/sql: from an int64 or from decimal text.
// For a column that may be null use [database/sql.Null] or a pointer.
func (id *ID) Scan(src any) error {
	switch v := src.(type) {
	case int64:
		if v < 0 {
			return fmt.Errorf("idgen: %d is no ID", v)
		}
		*id = ID(v)
		return nil
	case string:
		return id.UnmarshalText([]byte(v))
	case []byte:
		return id.UnmarshalText(v)
	}
	if src == nil {
		return errors.New("idgen: scan NULL: want a pointer or sql.Null")
	}
	return fmt.Errorf("idgen: scan %T: want a bigint or its text", src)
}
