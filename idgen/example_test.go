package idgen_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
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

func ExampleGenerator_Fill() {
	g, err := idgen.New(42, idgen.Config{})
	if err != nil {
		panic(err)
	}
	ids := make([]idgen.ID, 500)
	if _, err := g.Fill(context.Background(), ids); err != nil {
		panic(err)
	}
	fmt.Println(ids[0] < ids[1], ids[498] < ids[499])
	// Output: true true
}

func ExampleGenerator_TryNext() {
	// One ID for each call of a clock that stands still: 1,023 fit, as 0 is no
	// ID.
	now := func() time.Time { return idgen.Default.Epoch }
	g, err := idgen.New(0, idgen.Config{Now: now})
	if err != nil {
		panic(err)
	}
	for n := 0; ; n++ {
		if _, err := g.TryNext(); errors.Is(err, idgen.ErrFull) {
			fmt.Println(n, err)
			return
		}
	}
	// Output: 1023 idgen: the IDs of this millisecond are used up
}

func ExampleNewSet() {
	var all []*idgen.Generator
	for _, shard := range []int{7, 8, 9} {
		g, err := idgen.New(shard, idgen.Config{})
		if err != nil {
			panic(err)
		}
		all = append(all, g)
	}
	set, err := idgen.NewSet(all...)
	if err != nil {
		panic(err)
	}
	id, err := set.Next(context.Background()) // of whichever shard has one
	if err != nil {
		panic(err)
	}
	g, _ := set.Shard(8)
	of8, err := g.Next(context.Background())
	if err != nil {
		panic(err)
	}
	fmt.Println(idgen.Default.Shard(id) >= 7, idgen.Default.Shard(of8))
	// Output: true 8
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "ids")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background()

	// When this process is closed or killed, the next one goes on above its IDs.
	g, err := idgen.Open(ctx, idgen.FileLeases{Dir: dir}, 42, idgen.Config{})
	if err != nil {
		panic(err)
	}
	last, err := g.Next(ctx)
	if err != nil {
		panic(err)
	}
	if err := g.Close(); err != nil {
		panic(err)
	}

	back := func() time.Time { return time.Now().Add(-time.Second) } // the clock was set back
	g, err = idgen.Open(ctx, idgen.FileLeases{Dir: dir}, 42, idgen.Config{Now: back})
	if err != nil {
		panic(err)
	}
	id, err := g.Next(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println(id > last, g.Close())
	// Output: true <nil>
}

func ExampleLayout_First() {
	// Everything of one day, by the primary key alone.
	day := time.Date(2026, 10, 6, 0, 0, 0, 0, time.UTC)
	first := idgen.Default.First(day)
	next := idgen.Default.First(day.AddDate(0, 0, 1))
	fmt.Printf("select * from photo where id >= %d and id < %d\n", first, next)
	// Output: select * from photo where id >= 201487653273600000 and id < 202212429004800000
}

func ExampleID_MarshalJSON() {
	// JavaScript would round the number, so JSON carries a string.
	b, err := json.Marshal(map[string]idgen.ID{"id": 201850041139243009})
	fmt.Println(string(b), err)
	var number, text idgen.ID
	fmt.Println(json.Unmarshal([]byte(`201850041139243009`), &number), json.Unmarshal([]byte(`"201850041139243009"`), &text), number == text)
	// Output:
	// {"id":"201850041139243009"} <nil>
	// <nil> <nil> true
}
