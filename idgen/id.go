package idgen

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// An ID is a time-sortable 64-bit number: a PostgreSQL bigint, which pgx reads
// and writes without registration. 0 is no ID.
type ID int64

// String returns the ID in decimal.
func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

// Parse reads what String returns: a positive decimal number.
func Parse(s string) (ID, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || s[0] == '+' || s[0] == '0' {
		return 0, fmt.Errorf("idgen: %.40q is no ID", s)
	}
	return ID(n), nil
}

// MaxID is the cursor above every ID. No generator makes it.
const MaxID ID = math.MaxInt64

// alphabet is that of base64url, in which a code needs no escape in a URL.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// Short returns the ID as a code for URLs: the number in base 64, in at most 11
// letters, digits, '-' and '_'. Instagram's photo links carry the same code.
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

// MarshalText writes the ID in decimal. encoding/json makes it a string, as
// JavaScript's numbers hold only 53 bits.
func (id ID) MarshalText() ([]byte, error) {
	return strconv.AppendInt(nil, int64(id), 10), nil
}

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
