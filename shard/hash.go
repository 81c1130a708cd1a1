package shard

import "math/bits"

// HashInt is PostgreSQL's hashint8extended(key, 0): the hash of an integer key,
// frozen, as rows are placed by it.
func HashInt(key int64) uint64 {
	// The halves are folded so that a number hashes alike as int2, int4 and
	// int8; a negative one has its upper half inverted for that.
	lo, hi := uint32(key), uint32(uint64(key)>>32)
	if key < 0 {
		hi = ^hi
	}
	a, b, c := hashInit(4)
	a += lo ^ hi
	return final(a, b, c)
}

// HashText is PostgreSQL's hashtextextended(key, 0) for a deterministic
// collation: the hash of a text key, frozen, as rows are placed by it.
func HashText(key string) uint64 {
	a, b, c := hashInit(len(key))
	for len(key) >= 12 {
		a += word4(key)
		b += word4(key[4:])
		c += word4(key[8:])
		a, b, c = mix(a, b, c)
		key = key[12:]
	}
	// What is left is padded with zeros; the lowest byte of c is kept for the
	// length, which hashInit has put there.
	switch {
	case len(key) >= 8:
		a += word4(key)
		b += word4(key[4:])
		c += word(key[8:]) << 8
	case len(key) >= 4:
		a += word4(key)
		b += word(key[4:])
	default:
		a += word(key)
	}
	return final(a, b, c)
}

// The functions below are those of Bob Jenkins's lookup3 (public domain, 2006),
// which PostgreSQL hashes with.

func hashInit(n int) (a, b, c uint32) {
	a = 0x9e3779b9 + uint32(n) + 3923095
	return a, a, a
}

// word4 is word for four bytes or more, which the compiler makes one load of.
func word4(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

// word reads up to four bytes, little-endian.
func word(s string) uint32 {
	var w uint32
	for i := range len(s) {
		w |= uint32(s[i]) << (8 * i)
	}
	return w
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a -= c
	a ^= bits.RotateLeft32(c, 4)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 6)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 8)
	b += a
	a -= c
	a ^= bits.RotateLeft32(c, 16)
	c += b
	b -= a
	b ^= bits.RotateLeft32(a, 19)
	a += c
	c -= b
	c ^= bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func final(a, b, c uint32) uint64 {
	c ^= b
	c -= bits.RotateLeft32(b, 14)
	a ^= c
	a -= bits.RotateLeft32(c, 11)
	b ^= a
	b -= bits.RotateLeft32(a, 25)
	c ^= b
	c -= bits.RotateLeft32(b, 16)
	a ^= c
	a -= bits.RotateLeft32(c, 4)
	b ^= a
	b -= bits.RotateLeft32(a, 14)
	c ^= b
	c -= bits.RotateLeft32(b, 24)
	return uint64(b)<<32 | uint64(c)
}
