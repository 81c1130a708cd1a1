package idgen_test

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/shardgram/shardgram/idgen"
)

func Example() {
	now := func() time.Time { return time.Date(2026, 10, 6, 12, 0, 0, 0, time.UTC) }
	g, err := idgen.New(42, idgen.Config{Now: now})
	if err != nil {
		panic(err)
	}
	id, err := g.Next(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(id, id.Short())
	fmt.Println(idgen.Default.Time(id), idgen.Default.Shard(id))
	// Output:
	// 201850041139243009 LNHYsAAKgB
	// 2026-10-06 12:00:00 +0000 UTC 42
}

func ExampleID_MarshalText() {
	// JavaScript would round the number, so JSON carries a string.
	b, _ := json.Marshal(map[string]idgen.ID{"id": 201850041139243009})
	fmt.Println(string(b))
	// Output: {"id":"201850041139243009"}
}
