package feedcache_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
)

func TestCosts(t *testing.T) {
	t.Parallel()
	type author = feedcache.Author
	type viewer = feedcache.Viewer
	tests := []struct {
		name   string
		costs  feedcache.Costs
		author author
		viewer viewer
		pull   bool
	}{
		{name: "NothingKnown"},
		{name: "Few", author: author{Followers: 9_999}},
		{name: "Many", author: author{Followers: 10_000}, pull: true},
		{name: "ManyAndQuiet", author: author{Followers: 10_000}, viewer: viewer{PagesPerDay: 1000}, pull: true},
		{name: "OwnLimit", costs: feedcache.Costs{MaxFollowers: 5}, author: author{Followers: 5}, pull: true},
		{name: "BelowOwnLimit", costs: feedcache.Costs{MaxFollowers: 1 << 40}, author: author{Followers: 1 << 39}},
		{name: "Usual", author: author{PerDay: 5}, viewer: viewer{PagesPerDay: 20}},
		{name: "LoudAuthor", author: author{PerDay: 100}, viewer: viewer{PagesPerDay: 20}, pull: true},
		{name: "Even", author: author{PerDay: 60}, viewer: viewer{PagesPerDay: 20}, pull: true},
		{name: "JustBelow", author: author{PerDay: 59}, viewer: viewer{PagesPerDay: 20}},
		{
			name: "OwnCosts", costs: feedcache.Costs{PushCost: 2, PullCost: 1},
			author: author{PerDay: 10}, viewer: viewer{PagesPerDay: 20}, pull: true,
		},
		{
			name: "OwnCostsBelow", costs: feedcache.Costs{PushCost: 2, PullCost: 1},
			author: author{PerDay: 9.9}, viewer: viewer{PagesPerDay: 20},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.pull, test.costs.Pull(test.author, test.viewer))
		})
	}
}
