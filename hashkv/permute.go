package hashkv

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// split cuts key into a bucket number of n bits and the rest of the key. It
// loses nothing: rest is the key without its low n bits, and each of those is
// the bucket's bit xor one bit of a hash of all bits above it, so they can be
// found again from the top down. The hash makes neighbours, equal low bits and
// other patterns spread evenly over the buckets. Bit i of the bucket does not
// depend on n, and so bucket b of 2^n holds what b and b+2^n would of 2^(n+1).
func split(key uint64, n int) (bucket, rest uint64) {
	rest = key
	for i := range n {
		bit := rest & 1
		rest >>= 1
		bucket |= (bit ^ mix(rest)&1) << i
	}
	return bucket, rest
}

// join is the inverse of split: the lowest bit that is still missing follows
// from the bits above it.
func join(bucket, rest uint64, n int) uint64 {
	for i := n - 1; i >= 0; i-- {
		rest = rest<<1 | (bucket>>i&1 ^ mix(rest)&1)
	}
	return rest
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It
// decides where entries are stored and cannot change.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hash is FNV-1a of 64 bits, finished by mix because its low bits alone are
// weak. It decides where entries are stored and cannot change.
func hash(key string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 0x100000001b3
	}
	return mix(h)
}

// A mask is the bits that keys may have, as runs from the lowest up. It closes
// the gaps between them, so that only live bits are stored.
type mask []run

// A run is n bits in a row, which begin at bit `from` of a key and at bit `to`
// without the gaps.
type run struct{ from, to, n int }

func newMask(live uint64) mask {
	var m mask
	for from, to := 0, 0; live>>from != 0; {
		from += bits.TrailingZeros64(live >> from)
		n := bits.TrailingZeros64(^(live >> from))
		m = append(m, run{from, to, n})
		from, to = from+n, to+n
	}
	return m
}

// squeeze leaves out the bits of x that are not in m.
func (m mask) squeeze(x uint64) uint64 {
	var y uint64
	for _, r := range m {
		y |= x >> r.from & (1<<r.n - 1) << r.to
	}
	return y
}

// stretch is the inverse of squeeze.
func (m mask) stretch(y uint64) uint64 {
	var x uint64
	for _, r := range m {
		x |= y >> r.to & (1<<r.n - 1) << r.from
	}
	return x
}

// width returns how many bits m has.
func (m mask) width() int {
	if len(m) == 0 {
		return 0
	}
	last := m[len(m)-1]
	return last.to + last.n
}

// appendPacked appends the bytes of x, big end first, without leading zeros.
func appendPacked(b []byte, x uint64) []byte {
	var all [8]byte
	binary.BigEndian.PutUint64(all[:], x)
	return append(b, all[bits.LeadingZeros64(x)/8:]...)
}

var errPacked = errors.New("the stored bytes are no number of this map")

// unpack is the inverse of appendPacked. It refuses what that never makes.
func unpack(s string) (uint64, error) {
	if len(s) > 8 || s != "" && s[0] == 0 {
		return 0, errPacked
	}
	var x uint64
	for i := range len(s) {
		x = x<<8 | uint64(s[i])
	}
	return x, nil
}
