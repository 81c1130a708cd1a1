package feedcache_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/shardgram/shardgram/feedcache"
)

// A like is a notification.
type like struct{ id, photo, by int64 }

func describeLike(l like) (id, photo, actor int64) { return l.id, l.photo, l.by }

func TestAggregate(t *testing.T) {
	t.Parallel()
	likes := []like{{9, 1, 30}, {8, 2, 10}, {7, 1, 20}, {6, 1, 30}, {5, 2, 10}, {4, 3, 10}}
	want := []feedcache.Group[int64]{
		{Key: 1, IDs: []int64{9, 7, 6}, Actors: []int64{30, 20}},
		{Key: 2, IDs: []int64{8, 5}, Actors: []int64{10}},
		{Key: 3, IDs: []int64{4}, Actors: []int64{10}},
	}
	require.Equal(t, want, feedcache.Aggregate(likes, describeLike))
	shuffled := append(slices.Clone(likes), likes[2:4]...) // and some twice
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	was := slices.Clone(shuffled)
	require.Equal(t, want, feedcache.Aggregate(shuffled, describeLike))
	require.Equal(t, was, shuffled, "a pure function")
	require.Empty(t, feedcache.Aggregate(nil, describeLike))
}

func TestAggregateLosesNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		likes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) like {
			id := rapid.Int64Range(1, 30).Draw(t, "id")
			return like{id, id % 5, id % 7} // an ID is one notification
		}), 0, 40).Draw(t, "likes")
		groups := feedcache.Aggregate(likes, describeLike)
		var got, want []like
		newest := int64(31)
		for _, g := range groups {
			require.Less(t, g.IDs[0], newest)
			newest = g.IDs[0]
			var actors []int64
			for i, id := range g.IDs {
				require.True(t, i == 0 || id < g.IDs[i-1])
				got = append(got, like{id, g.Key, id % 7})
				if !slices.Contains(actors, id%7) {
					actors = append(actors, id%7)
				}
			}
			require.Equal(t, actors, g.Actors)
		}
		for _, l := range likes {
			if !slices.Contains(want, l) {
				want = append(want, l)
			}
		}
		require.ElementsMatch(t, want, got)
	})
}

func TestPhrase(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"":                          feedcache.Phrase(nil, 0),
		"1 person":                  feedcache.Phrase(nil, 1),
		"5 people":                  feedcache.Phrase([]string{}, 5),
		"ada":                       feedcache.Phrase([]string{"ada"}, 1),
		"ada and bob":               feedcache.Phrase([]string{"ada", "bob"}, 2),
		"ada and 1 other":           feedcache.Phrase([]string{"ada"}, 2),
		"ada, bob and cy":           feedcache.Phrase([]string{"ada", "bob", "cy"}, 3),
		"ada, bob and 1 other":      feedcache.Phrase([]string{"ada", "bob"}, 3),
		"ada, bob and 3 others":     feedcache.Phrase([]string{"ada", "bob"}, 5),
		"ada, bob, cy and 9 others": feedcache.Phrase([]string{"ada", "bob", "cy"}, 12),
	} {
		require.Equal(t, want, got)
	}
	require.Equal(t, "ada", feedcache.Phrase([]string{"ada", "bob"}, 1), "more names than people")
	require.Empty(t, feedcache.Phrase([]string{"ada"}, -1))
}
