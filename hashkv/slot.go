package hashkv

import (
	"strconv"
	"sync"
)

// Redis Cluster keeps a key at slot CRC16(key) mod 16384, or of the part of the
// key in braces if there is one.
const (
	slotBits = 14
	tagBytes = 3
)

// tags has for each slot a string of three letters or digits that hashes to it.
// With it in braces, a bucket lies where we want it: the slots of a map are as
// evenly spread as its buckets, and a bucket's halves are born beside it, where
// one script can move entries from one to another.
var tags = sync.OnceValue(func() *[1 << slotBits][tagBytes]byte {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var found [1 << slotBits][tagBytes]byte
	for i := range len(letters) * len(letters) * len(letters) {
		tag := [tagBytes]byte{
			letters[i/len(letters)/len(letters)], letters[i/len(letters)%len(letters)], letters[i%len(letters)],
		}
		if at := &found[crc16(tag[:])%(1<<slotBits)]; at[0] == 0 {
			*at = tag
		}
	}
	return &found
})

// crc16 is the CRC of the Redis Cluster specification (XMODEM): polynomial
// 0x1021, from 0.
func crc16(b []byte) uint16 {
	var crc uint16
	for _, c := range b {
		crc ^= uint16(c) << 8
		for range 8 {
			carry := crc >> 15
			crc = crc<<1 ^ 0x1021*carry
		}
	}
	return crc
}

// A spot is a place for entries: bucket b of the 2^level that the map has, had
// or will have.
type spot struct {
	level  int
	bucket uint64
}

// halves returns the two buckets among which s is divided when the map grows.
func (s spot) halves() [2]spot {
	return [2]spot{{s.level + 1, s.bucket}, {s.level + 1, s.bucket | 1<<s.level}}
}

// parent returns the bucket that s is a half of.
func (s spot) parent() spot { return spot{s.level - 1, s.bucket & (1<<(s.level-1) - 1)} }

// appendName appends the Redis key of s in a map with 2^tagged tags. The low
// bits of the bucket choose the tag; the others follow in hexadecimal, behind a
// 1 that tells the level:
//
//	owner:{5kn}87   bucket 128237 of 2^21: 0000111 above the 14 bits of {5kn}
func (s spot) appendName(b []byte, prefix string, tagged int) []byte {
	slot := s.bucket & (1<<tagged - 1) << (slotBits - tagged)
	b = append(b, prefix...)
	b = append(b, ':', '{')
	b = append(b, tags()[slot][:]...)
	b = append(b, '}')
	return strconv.AppendUint(b, 1<<(s.level-tagged)|s.bucket>>tagged, 16)
}
