package hashkv

import "time"

// Rejuvenate makes a map believe that it has just read what it knows of its
// header, as if all others had been as quick as can be.
func (b *book) Rejuvenate() { b.Age(0) }

// Age makes a map believe that it has read its header so long ago.
func (b *book) Age(age time.Duration) {
	v := *b.seen.Load()
	v.read = time.Now().Add(-age)
	v.tried = v.read
	b.seen.Store(&v)
}

// RoomFor returns the largest mean fill that a map is planned for.
func RoomFor(limit int) float64 { return roomFor(limit) }
