package lookaside_test

import (
	"fmt"
	"testing"

	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/stretchr/testify/require"
)

func BenchmarkGet(b *testing.B) {
	r := newRows(1)
	c := open(b, client(b, testserver.Memcached(b)), r, config{})
	b.Run("hit", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.Get(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("miss", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Invalidate(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Get(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGetMulti(b *testing.B) {
	for _, n := range []int{20, 200} {
		r := newRows(n)
		c := open(b, client(b, testserver.Memcached(b)), r, config{})
		keys := make([]int, n)
		for k := range keys {
			keys[k] = k
		}
		_, err := c.GetMulti(b.Context(), keys...)
		require.NoError(b, err)
		b.Run(fmt.Sprintf("keys=%d/hit", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.GetMulti(b.Context(), keys...); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("keys=%d/miss", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Invalidate(b.Context(), keys...); err != nil {
					b.Fatal(err)
				}
				if _, err := c.GetMulti(b.Context(), keys...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
