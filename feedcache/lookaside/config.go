package lookaside

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Config describes a Cache. Its zero value works for keys of an integer or
// string type and values that encoding/json can carry.
type Config[K comparable, V any] struct {
	// Prefix begins the memcached key of every object, before a colon. Caches
	// of different objects need different prefixes. It is up to 100 printable
	// ASCII characters without space and colon. Default: the type of the
	// values, such as "store.User"; two caches of one type need their own.
	Prefix string

	// Key returns the text of a key, different for different keys. Texts that
	// memcached would not take, with spaces or over its 250 bytes, are replaced
	// by their SHA-256. Default: decimals of an integer type, a string type as
	// it is; other types need a Key.
	Key func(K) string

	// Marshal and Unmarshal turn a value into bytes and back. Set both or none.
	// When Unmarshal fails, the cached bytes count as a miss and are replaced.
	// Default: encoding/json.
	Marshal   func(V) ([]byte, error)
	Unmarshal func([]byte) (V, error)

	// TTL is how long a value is kept, give or take a tenth, so that what was
	// loaded together does not expire together. 2 s to 30 days. Default: 1 h.
	TTL time.Duration

	// NegativeTTL is how long it is kept that a key does not exist. 2 s to 30
	// days. Default: 10 s.
	NegativeTTL time.Duration

	// LeaseTTL is how long a reader that died keeps others from filling a key.
	// A load that takes longer is not stored. 2 s to 30 days. Default: 10 s.
	LeaseTTL time.Duration

	// MaxWait is how long a call waits for the lease of another reader before
	// it loads the key itself. Default: 200 ms.
	MaxWait time.Duration
}

// complete fills in defaults and checks the rest.
func (c *Config[K, V]) complete() error {
	if c.Prefix == "" {
		c.Prefix = defaultPrefix[V]()
	}
	// Without the ban on colons, key "b:1" under "a" and "1" under "a:b" would
	// be the same item.
	if len(c.Prefix) > 100 || !plain(c.Prefix) || strings.Contains(c.Prefix, ":") {
		return fmt.Errorf("lookaside: Config.Prefix is %q: want up to 100 printable ASCII characters without space and colon", c.Prefix)
	}
	if c.Key == nil {
		c.Key = defaultKey[K]()
	}
	if c.Key == nil {
		return fmt.Errorf("lookaside: keys of type %s need a Key", reflect.TypeFor[K]())
	}
	if (c.Marshal == nil) != (c.Unmarshal == nil) {
		return errors.New("lookaside: only one of Marshal and Unmarshal is set")
	}
	if c.Marshal == nil {
		c.Marshal = func(v V) ([]byte, error) { return json.Marshal(v) }
		c.Unmarshal = func(b []byte) (v V, err error) { return v, json.Unmarshal(b, &v) }
	}
	for _, ttl := range []struct {
		name  string
		value *time.Duration
		unset time.Duration
	}{
		{"TTL", &c.TTL, time.Hour},
		{"NegativeTTL", &c.NegativeTTL, 10 * time.Second},
		{"LeaseTTL", &c.LeaseTTL, 10 * time.Second},
	} {
		if *ttl.value == 0 {
			*ttl.value = ttl.unset
		}
		// memcached takes more than 30 days for a date in 1970, and its clock
		// ticks once a second, so that 1 may be over at once.
		if *ttl.value < 2*time.Second || *ttl.value > maxTTL {
			return fmt.Errorf("lookaside: Config.%s is %v: want 2 s to 30 days", ttl.name, *ttl.value)
		}
	}
	if c.MaxWait == 0 {
		c.MaxWait = 200 * time.Millisecond
	}
	if c.MaxWait < 0 {
		return fmt.Errorf("lookaside: Config.MaxWait is %v: want 0 or more", c.MaxWait)
	}
	return nil
}

const maxTTL = 30 * 24 * time.Hour

// seconds rounds a TTL up to memcached's unit.
func seconds(ttl time.Duration) int32 {
	return int32((min(ttl, maxTTL) + time.Second - 1) / time.Second)
}

// jitter returns ttl times 0.9 to 1.1.
func jitter(ttl time.Duration) time.Duration {
	return time.Duration(float64(ttl) * (0.9 + 0.2*rand.Float64()))
}

// defaultPrefix is the name of a type, without what a prefix cannot hold.
func defaultPrefix[V any]() string {
	name := strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || r == ':' {
			return '_'
		}
		return r
	}, reflect.TypeFor[V]().String())
	return name[:min(len(name), 100)]
}

// defaultKey looks at the kind, not at a String method, which may lose digits.
func defaultKey[K comparable]() func(K) string {
	switch t := reflect.TypeFor[K](); {
	case t.Kind() == reflect.String:
		return func(k K) string { return reflect.ValueOf(k).String() }
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		return func(k K) string { return strconv.FormatInt(reflect.ValueOf(k).Int(), 10) }
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uintptr:
		return func(k K) string { return strconv.FormatUint(reflect.ValueOf(k).Uint(), 10) }
	}
	return nil
}

// itemKey returns the memcached key of k. A text that begins with '#' is hashed
// too, so that none can pose as the hash of another.
func (c *Config[K, V]) itemKey(k K) string {
	text := c.Key(k)
	if len(c.Prefix)+1+len(text) > 250 || !plain(text) || strings.HasPrefix(text, "#") {
		sum := sha256.Sum256([]byte(text))
		text = "#" + hex.EncodeToString(sum[:])
	}
	return c.Prefix + ":" + text
}

// plain reports whether memcached takes s as part of a key.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
