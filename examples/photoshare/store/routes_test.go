package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
)

// TestACelebrityComesAndGoes lets an author gain and lose followers. Whichever
// way the photos take at the time, and on the way from one to the other, the
// followers see each of them once.
func TestACelebrityComesAndGoes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	require.NoError(t, r.Close())
	r.maxFollowers = 3
	r.open(t, 3*time.Second)
	ada, bob, eve := r.signUp(t, "ada"), r.signUp(t, "bob"), r.signUp(t, "eve")
	fans := []store.User{bob, r.signUp(t, "cleo"), r.signUp(t, "dan")}
	require.NoError(t, r.Follow(t.Context(), bob.ID, eve.ID))
	var want []idgen.ID
	share := func(author store.User) {
		want = append([]idgen.ID{r.upload(t, author, "").ID}, want...)
		require.Equal(t, want, r.home(t, bob, 2))
	}
	// until shares photos of both until a route is reached.
	until := func(route int) {
		deadline := time.Now().Add(time.Minute)
		for r.count(t, "celebrity") == 0 || r.route(t, ada) != route {
			require.True(t, time.Now().Before(deadline), "route %d", route)
			share(ada)
			share(eve)
		}
	}
	for _, fan := range fans {
		require.NoError(t, r.Follow(t.Context(), fan.ID, ada.ID))
	}
	until(2)
	share(ada)
	inFeed := func() (n int64) {
		n, err := r.rdb.LLen(t.Context(), "home:"+bob.ID.String()).Result()
		require.NoError(t, err)
		return n
	}
	before := inFeed()
	share(ada)
	require.Equal(t, before, inFeed(), "it was not pushed")
	r.rdb.FlushAll(t.Context())
	require.Equal(t, want, r.home(t, bob, 3), "rebuilt")
	share(ada)

	// A new follower sees all, one who leaves nothing.
	require.NoError(t, r.Follow(t.Context(), eve.ID, ada.ID))
	require.Equal(t, want, r.home(t, eve, 3))
	require.NoError(t, r.Unfollow(t.Context(), eve.ID, ada.ID))
	require.NotContains(t, r.home(t, eve, 3), want[0])

	for _, fan := range fans[1:] {
		require.NoError(t, r.Unfollow(t.Context(), fan.ID, ada.ID))
	}
	until(0)
	require.Zero(t, r.count(t, "celebrity where since is not null"))
	before = inFeed()
	share(ada)
	require.Greater(t, inFeed(), before, "it was pushed")
}

func (r *rig) route(t *testing.T, author store.User) (route int) {
	require.NoError(t, r.cluster.ID(author.ID).QueryRow(t.Context(), "select route from celebrity where author_id = $1", author.ID).Scan(&route))
	return route
}
