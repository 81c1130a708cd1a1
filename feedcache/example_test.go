package feedcache_test

import (
	"context"
	"fmt"
	"log"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// A photo goes to the feeds of its author's followers.
func Example() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()

	// The store of record. In SQL: select id from feed
	// where owner = $1 and id < $2 order by id desc limit $3
	rows := map[int64][]int64{1: {103, 102, 101}, 2: {103}}
	source := func(_ context.Context, owner, before int64, n int) ([]int64, error) {
		ids := slices.Clone(rows[owner])
		ids = slices.DeleteFunc(ids, func(id int64) bool { return id >= before })
		return ids[:min(n, len(ids))], nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example"})
	if err != nil {
		log.Fatal(err)
	}

	// Owner 1 opens the app, which fills the feed. Owner 2 does not.
	page, err := feeds.Page(ctx, 1, 0, 2)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(page.IDs, page.Next)

	// First the store of record, then the feeds.
	rows[1] = append([]int64{104}, rows[1]...)
	rows[2] = append([]int64{104}, rows[2]...)
	delivery, err := feeds.Push(ctx, slices.Values([]int64{1, 2}), 104)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(delivery.Warm, "warm,", delivery.Cold, "cold")

	for owner := int64(1); owner <= 2; owner++ {
		page, err := feeds.Page(ctx, owner, 0, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs, page.Next)
	}
	if err := feeds.Drop(ctx, 1, 2); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [103 102] 102
	// 1 warm, 1 cold
	// [104 103 102 101] 0
	// [104 103] 0
}

// A walk of a whole feed: Next is the cursor, and 0 at the end.
func ExampleFeeds_Page() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(_ context.Context, _, before int64, n int) ([]int64, error) {
		var ids []int64
		for id := min(before-1, 7); id > 0 && len(ids) < n; id-- {
			ids = append(ids, id)
		}
		return ids, nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:walk", Cap: 4})
	if err != nil {
		log.Fatal(err)
	}
	for before := int64(0); ; {
		page, err := feeds.Page(ctx, 1, before, 3)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs)
		if before = page.Next; before == 0 {
			break
		}
	}
	if err := feeds.Drop(ctx, 1); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [7 6 5]
	// [4 3 2]
	// [1]
}

// A deleted photo leaves the feeds it is in, and does not come back with a
// push that arrives late.
func ExampleFeeds_Remove() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(context.Context, int64, int64, int) ([]int64, error) { return []int64{101}, nil }
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:remove"})
	if err != nil {
		log.Fatal(err)
	}
	followers := slices.Values([]int64{1})
	if _, err := feeds.Page(ctx, 1, 0, 10); err != nil { // warm from here on
		log.Fatal(err)
	}
	if _, err := feeds.Remove(ctx, followers, 102); err != nil {
		log.Fatal(err)
	}
	if _, err := feeds.Push(ctx, followers, 102, 103); err != nil {
		log.Fatal(err)
	}
	page, err := feeds.Page(ctx, 1, 0, 10)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(page.IDs)
	if err := feeds.Drop(ctx, 1); err != nil {
		log.Fatal(err)
	}
	// Output: [103 101]
}

// Some photos of a page may not be shown: the page goes on until it is full.
func ExampleFeeds_PageKeep() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(context.Context, int64, int64, int) ([]int64, error) {
		return []int64{106, 105, 104, 103, 102, 101}, nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:keep"})
	if err != nil {
		log.Fatal(err)
	}

	// Keep loads the objects of the IDs, and keeps those it finds.
	photos := map[int64]string{106: "dog", 104: "lake", 103: "cake", 101: "tree"}
	var shown []string
	keep := func(_ context.Context, ids []int64) ([]int64, error) {
		return slices.DeleteFunc(ids, func(id int64) bool { return photos[id] == "" }), nil
	}
	page, err := feeds.PageKeep(ctx, 1, 0, 3, keep)
	if err != nil {
		log.Fatal(err)
	}
	for _, id := range page.IDs {
		shown = append(shown, photos[id])
	}
	fmt.Println(shown, page.Next)
	if err := feeds.Drop(ctx, 1); err != nil {
		log.Fatal(err)
	}
	// Output: [dog lake cake] 103
}

// An owner unfollows one author and follows another.
func ExampleFeeds_Edit() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()

	// Photos by author; the store of record.
	photos := map[int64][]int64{1: {101, 103}, 2: {102, 104}, 3: {90, 105}}
	following := []int64{1, 2}
	source := func(_ context.Context, _, before int64, n int) ([]int64, error) {
		var ids []int64
		for _, author := range following {
			ids = append(ids, photos[author]...)
		}
		ids = slices.DeleteFunc(ids, func(id int64) bool { return id >= before })
		slices.Sort(ids)
		slices.Reverse(ids)
		return ids[:min(n, len(ids))], nil
	}
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:edit"})
	if err != nil {
		log.Fatal(err)
	}
	show := func() {
		page, err := feeds.Page(ctx, 7, 0, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs)
	}
	show()

	following = []int64{1, 3} // first the store of record
	err = feeds.Edit(ctx, 7, func(ids []int64) ([]int64, error) {
		ids = slices.DeleteFunc(ids, func(id int64) bool { return slices.Contains(photos[2], id) })
		return append(ids, photos[3]...), nil
	})
	if err != nil {
		log.Fatal(err)
	}
	show()
	if err := feeds.Drop(ctx, 7); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [104 103 102 101]
	// [105 103 101 90]
}

// A worker delivers a photo to all followers of its author. It stores a cursor
// after each page of them, and goes on from there after a crash.
func ExampleFanout() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	source := func(context.Context, int64, int64, int) ([]int64, error) { return nil, nil }
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:fanout"})
	if err != nil {
		log.Fatal(err)
	}
	followers := []int64{11, 12, 13, 14, 15}
	for _, owner := range followers[1:] { // all but the first have opened the app
		if _, err := feeds.Page(ctx, owner, 0, 10); err != nil {
			log.Fatal(err)
		}
	}

	// In SQL: select follower from follower
	// where author = $1 and follower > $2 order by follower limit $3
	after := func(_ context.Context, author, after int64, n int) ([]int64, error) {
		begin, _ := slices.BinarySearch(followers, after+1)
		return followers[begin:min(begin+n, len(followers))], nil
	}
	fanout, err := feedcache.NewFanout(feeds, after, feedcache.FanoutConfig{PageSize: 2})
	if err != nil {
		log.Fatal(err)
	}
	job := feedcache.Job{Author: 1, IDs: []int64{101}, At: time.Now()}
	delivery, err := fanout.Run(ctx, job, func(_ context.Context, cursor int64) error {
		job.After = cursor // update job set cursor = ...
		fmt.Println("up to", cursor)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(delivery.Warm, "warm,", delivery.Cold, "cold")
	if err := feeds.Drop(ctx, followers...); err != nil {
		log.Fatal(err)
	}
	// Output:
	// up to 12
	// up to 14
	// up to 15
	// 4 warm, 1 cold
}

// A notification feed says who liked what, and how many of it are new.
func ExampleAggregate() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	type like struct {
		id    int64
		photo string
		by    int64
	}
	likes := map[int64]like{
		501: {501, "lake", 1}, 502: {502, "lake", 2}, 503: {503, "dog", 3},
		504: {504, "lake", 3}, 505: {505, "lake", 4}, 506: {506, "dog", 3},
	}
	names := map[int64]string{1: "ada", 2: "bob", 3: "cy", 4: "dee"}
	source := func(context.Context, int64, int64, int) ([]int64, error) {
		return []int64{505, 504, 503, 502, 501}, nil
	}
	mark := func(context.Context, int64) (int64, error) { return 503, nil } // of the store of record
	feeds, err := feedcache.New(rdb, source, feedcache.Config{Prefix: "example:likes", Mark: mark})
	if err != nil {
		log.Fatal(err)
	}
	unseen := func() {
		u, err := feeds.Unseen(ctx, 7)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(u.N, "new")
	}
	unseen()
	if _, err := feeds.Push(ctx, slices.Values([]int64{7}), 506); err != nil {
		log.Fatal(err)
	}
	unseen()

	page, err := feeds.Page(ctx, 7, 0, 20)
	if err != nil {
		log.Fatal(err)
	}
	groups := feedcache.Aggregate(page.IDs, func(id int64) (int64, string, int64) {
		return id, likes[id].photo, likes[id].by
	})
	for _, g := range groups {
		var who []string
		for _, actor := range g.Actors[:min(2, len(g.Actors))] {
			who = append(who, names[actor])
		}
		fmt.Println(feedcache.Phrase(who, len(g.Actors)), "liked your photo of the", g.Key)
	}
	if err := feeds.Seen(ctx, 7, page.IDs[0]); err != nil {
		log.Fatal(err)
	}
	unseen()
	if err := feeds.Drop(ctx, 7); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 2 new
	// 3 new
	// cy liked your photo of the dog
	// dee, cy and 2 others liked your photo of the lake
	// 0 new
}

// A routeMap keeps routes in memory. In SQL they are a table of their own, which
// Pulled joins with the follows.
type routeMap struct {
	mu    sync.Mutex
	route map[int64]feedcache.Route
	since map[int64]int64
}

func (m *routeMap) Pulled(_ context.Context, _ int64) ([]int64, error) { // all follow all here
	m.mu.Lock()
	defer m.mu.Unlock()
	var authors []int64
	for author, route := range m.route {
		if route != feedcache.RoutePush {
			authors = append(authors, author)
		}
	}
	return authors, nil
}

func (m *routeMap) Skip(_ context.Context, author, id int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.route[author] != feedcache.RoutePull {
		return false, nil
	}
	if m.since[author] == 0 || id < m.since[author] {
		m.since[author] = id
	}
	return true, nil
}

func (m *routeMap) Set(_ context.Context, author int64, r feedcache.Route) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.route[author] = r
	since := m.since[author]
	if r == feedcache.RoutePush {
		delete(m.since, author)
	}
	return since, nil
}

// The photos of an author with very many followers are pulled: a page merges
// the feed with the author's outbox.
func ExampleHybrid() {
	ctx := context.Background()
	rdb := redis.NewClient(&redis.Options{Addr: testserver.RedisAddr(), ContextTimeoutEnabled: true})
	defer rdb.Close()
	const star, friend, viewer = 1, 2, 7
	newest := func(lists ...[]int64) feedcache.Source {
		ids := slices.Concat(lists...)
		slices.Sort(ids)
		slices.Reverse(ids)
		return func(_ context.Context, _, before int64, n int) ([]int64, error) {
			ids := slices.DeleteFunc(slices.Clone(ids), func(id int64) bool { return id >= before })
			return ids[:min(n, len(ids))], nil
		}
	}
	// The store of record: the viewer's whole feed, and each author's own photos.
	starred := []int64{101, 103}
	feeds, err := feedcache.New(rdb, newest(starred, []int64{102}), feedcache.Config{Prefix: "example:home"})
	if err != nil {
		log.Fatal(err)
	}
	outboxes, err := feedcache.New(rdb, newest(starred), feedcache.Config{Prefix: "example:outbox"})
	if err != nil {
		log.Fatal(err)
	}
	routes := &routeMap{route: map[int64]feedcache.Route{}, since: map[int64]int64{}}
	home, err := feedcache.NewHybrid(feeds, outboxes, routes)
	if err != nil {
		log.Fatal(err)
	}
	followers := func(_ context.Context, _, after int64, _ int) ([]int64, error) {
		return slices.DeleteFunc([]int64{viewer}, func(owner int64) bool { return owner <= after }), nil
	}
	fanout, err := feedcache.NewFanout(feeds, followers, feedcache.FanoutConfig{
		Outboxes: outboxes, Routes: routes, RouteAge: time.Millisecond,
	})
	if err != nil {
		log.Fatal(err)
	}
	show := func() {
		page, err := home.Page(ctx, viewer, 0, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(page.IDs)
	}
	if err := fanout.Switch(ctx, star, feedcache.RoutePull); err != nil {
		log.Fatal(err)
	}
	show()

	for _, job := range []feedcache.Job{{Author: friend, IDs: []int64{104}}, {Author: star, IDs: []int64{105}}} {
		delivery, err := fanout.Run(ctx, job, nil)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("author", job.Author, "reached", delivery.Warm, "of the feeds")
	}
	show()
	if err := feeds.Drop(ctx, viewer); err != nil {
		log.Fatal(err)
	}
	if err := outboxes.Drop(ctx, star, friend); err != nil {
		log.Fatal(err)
	}
	// Output:
	// [103 102 101]
	// author 2 reached 1 of the feeds
	// author 1 reached 0 of the feeds
	// [105 104 103 102 101]
}
