package store

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"
)

// A hasher hashes passwords with argon2id, in the PHC string format. A hash
// takes 19 MiB of memory and about 25 ms, so only as many run at a time as
// there are cores; the others wait.
type hasher struct {
	slots chan struct{}
	decoy string // a hash that no password has
}

var errUnreadable = errors.New("a stored password hash is not readable")

const (
	argonMemory = 19 * 1024 // KiB
	argonTime   = 2
	saltBytes   = 16
	hashBytes   = 32
)

func newHasher() hasher {
	salt := base64.RawStdEncoding.EncodeToString(make([]byte, saltBytes))
	hash := base64.RawStdEncoding.EncodeToString(make([]byte, hashBytes))
	return hasher{make(chan struct{}, runtime.GOMAXPROCS(0)), encode(salt, hash)}
}

func encode(salt, hash string) string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, argonMemory, argonTime, salt, hash)
}

func (h hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt) // never fails
	hash, err := h.derive(ctx, password, salt, argonTime, argonMemory, 1, hashBytes)
	if err != nil {
		return "", err
	}
	return encode(base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(hash)), nil
}

// verify tells whether a password has a hash. It goes by the parameters in the
// hash, so that they can be raised later.
func (h hasher) verify(ctx context.Context, phc, password string) (bool, error) {
	var version int
	var memory, time uint32
	var threads uint8
	var rest string
	if _, err := fmt.Sscanf(phc, "$argon2id$v=%d$m=%d,t=%d,p=%d$%s", &version, &memory, &time, &threads, &rest); err != nil || version != argon2.Version {
		return false, errUnreadable
	}
	salt64, hash64, _ := strings.Cut(rest, "$")
	salt, err1 := base64.RawStdEncoding.DecodeString(salt64)
	want, err2 := base64.RawStdEncoding.DecodeString(hash64)
	if err1 != nil || err2 != nil || len(want) == 0 {
		return false, errUnreadable
	}
	got, err := h.derive(ctx, password, salt, time, memory, threads, uint32(len(want)))
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}

func (h hasher) derive(ctx context.Context, password string, salt []byte, time, memory uint32, threads uint8, n uint32) ([]byte, error) {
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
		return argon2.IDKey([]byte(password), salt, time, memory, threads, n), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
