package shard_test

import (
	"testing"

	"github.com/shardgram/shardgram/shard"
)

// BenchmarkRoute shows what it costs to find the shard of a key.
func BenchmarkRoute(b *testing.B) {
	c, err := shard.Open(b.Context(), shard.Static(8192, shard.Node{Name: "a", DSN: "postgres://127.0.0.1:1/x"}), shard.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	sum := 0
	b.Run("key=int", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sum += c.KeyInt(int64(b.N)).Number()
		}
	})
	b.Run("key=text", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			sum += c.Key("founding.engineer").Number()
		}
	})
}
