package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/blob"
	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

func TestMain(m *testing.M) {
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedRedis, testserver.NeedMemcached)
}

// A rig is a store on servers that a test may break.
type rig struct {
	*store.Store
	cluster  *shard.Cluster
	rdb      *redis.Client
	redis    *localserver.Redis
	memcache *localserver.Memcached
	blobs    *faultyBlobs
	dir      string // of the blobs

	maxFollowers int64
}

// newRig opens a store. Redis and memcached are the test's own.
func newRig(t *testing.T) *rig {
	return newRigOn(t, testserver.Host(t),
		shard.Node{Name: "a", DSN: testserver.Postgres(t)},
		shard.Node{Name: "b", DSN: testserver.Postgres(t)})
}

func newRigOn(t *testing.T, host *localserver.Host, nodes ...shard.Node) *rig {
	r := &rig{dir: t.TempDir()}
	var err error
	// It keeps what it has over a restart: a feed that comes back may be old.
	r.redis, err = host.Redis(t.Context(), "redis", localserver.RedisConfig{Settings: map[string]string{"appendonly": "yes"}})
	require.NoError(t, err)
	r.memcache, err = host.Memcached(t.Context(), "memcached", localserver.MemcachedConfig{})
	require.NoError(t, err)
	r.rdb = redis.NewClient(&redis.Options{Addr: r.redis.Addr(), DialerRetries: 1, MaxRetries: 1})
	t.Cleanup(func() { require.NoError(t, r.rdb.Close()) })
	r.cluster, err = shard.Open(t.Context(), shard.Static(4, nodes...), shard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.cluster.Close()) })
	r.open(t, 2*time.Second)
	return r
}

// open opens the store, also another time.
func (r *rig) open(t *testing.T, repairEvery time.Duration) {
	blobs, err := blob.OpenDir(r.dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, blobs.Close()) })
	r.blobs = &faultyBlobs{Store: blobs}
	mc := memcache.New(r.memcache.Addr())
	t.Cleanup(func() { require.NoError(t, mc.Close()) })
	r.Store, err = store.Open(t.Context(), store.Config{
		Shards: r.cluster, Redis: r.rdb, Memcache: mc, Blobs: r.blobs,
		Log: slog.New(slog.DiscardHandler), RepairEvery: repairEvery, MaxFollowers: r.maxFollowers,
	})
	require.NoError(t, err)
	opened := r.Store
	t.Cleanup(func() { require.NoError(t, opened.Close()) })
}

// faultyBlobs calls hook, if set, before a Put.
type faultyBlobs struct {
	blob.Store

	mu   sync.Mutex
	hook func(n int) error // n counts the Puts since it was set
	n    int
}

func (f *faultyBlobs) set(hook func(n int) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook, f.n = hook, 0
}

func (f *faultyBlobs) Put(ctx context.Context, key string, data []byte) error {
	f.mu.Lock()
	f.n++
	hook, n := f.hook, f.n
	f.mu.Unlock()
	if hook != nil {
		if err := hook(n); err != nil {
			return err
		}
	}
	return f.Store.Put(ctx, key, data)
}

var picture = sync.OnceValue(func() []byte {
	data, err := os.ReadFile("../testdata/chelsea.jpg")
	if err != nil {
		panic(err)
	}
	return data
})

func (r *rig) signUp(t *testing.T, name string) store.User {
	u, err := r.SignUp(t.Context(), name, "correct horse")
	require.NoError(t, err)
	return u
}

// upload shares a photo, and waits until it is in the feeds of the followers.
func (r *rig) upload(t *testing.T, author store.User, caption string) store.Photo {
	p, err := r.Upload(t.Context(), author.ID, caption, picture())
	require.NoError(t, err)
	r.fannedOut(t)
	return p
}

// unfinished are the jobs that are not done, on any node.
const unfinished = "jobs.river_job where state <> 'completed'"

func (r *rig) fannedOut(t *testing.T) {
	eventually(t, "the fan-out is done", func() bool { return r.count(t, unfinished) == 0 })
}

// home walks a home feed to its end, n at a time.
func (r *rig) home(t *testing.T, viewer store.User, n int) (ids []idgen.ID) {
	for before := idgen.ID(0); ; {
		page, err := r.Home(t.Context(), viewer.ID, before, n)
		require.NoError(t, err)
		for _, post := range page.Items {
			ids = append(ids, post.ID)
		}
		if page.Next == 0 {
			return ids
		}
		require.Len(t, page.Items, n, "only the last page may be short")
		before = page.Next
	}
}

func (r *rig) files(t *testing.T) (files []string) {
	require.NoError(t, filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// count adds up a table over all shards.
func (r *rig) count(t *testing.T, table string) (total int) {
	for _, s := range r.cluster.Shards() {
		var n int
		require.NoError(t, s.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n))
		total += n
	}
	return total
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	u := r.signUp(t, " Ada_L.1 ")
	require.Equal(t, "ada_l.1", u.Name)
	got, err := r.LogIn(t.Context(), "ADA_L.1", "correct horse")
	require.NoError(t, err)
	require.Equal(t, u, got)
	got, err = r.User(t.Context(), u.ID)
	require.NoError(t, err)
	require.Equal(t, u, got)
	got, err = r.UserByName(t.Context(), "ada_l.1")
	require.NoError(t, err)
	require.Equal(t, u, got)

	_, err = r.SignUp(t.Context(), "ada_l.1", "another password")
	require.ErrorIs(t, err, store.ErrNameTaken)
	for _, wrong := range [][2]string{{"ada_l.1", "wrong horse"}, {"ada_l.1", ""}, {"nobody", "correct horse"}, {"\x00", "x"}} {
		_, err = r.LogIn(t.Context(), wrong[0], wrong[1])
		require.ErrorIs(t, err, store.ErrWrongPassword, "%q", wrong)
	}
	for _, bad := range []struct{ name, password, field string }{
		{"a", "correct horse", "name"},
		{strings.Repeat("a", 31), "correct horse", "name"},
		{"ada lovelace", "correct horse", "name"},
		{"ädä", "correct horse", "name"},
		{"..", "correct horse", "name"},
		{"ada", "7 chars", "password"},
		{"ada", strings.Repeat("x", 129), "password"},
	} {
		_, err = r.SignUp(t.Context(), bad.name, bad.password)
		invalid, ok := errors.AsType[*store.InvalidError](err)
		require.True(t, ok, "%v: %v", bad, err)
		require.Equal(t, bad.field, invalid.Field)
	}
	for _, name := range []string{"nobody", "", "\xff", "a\x00b"} {
		_, err = r.UserByName(t.Context(), name)
		require.ErrorIs(t, err, store.ErrNotFound, "%q", name)
	}
	for _, id := range []idgen.ID{u.ID + 1, 1, 8191 << 10} {
		_, err = r.User(t.Context(), id)
		require.ErrorIs(t, err, store.ErrNotFound)
	}
}

func TestAPhotoReachesFollowersOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob, eve := r.signUp(t, "ada"), r.signUp(t, "bob"), r.signUp(t, "eve")
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID), "twice is once")
	require.Empty(t, r.home(t, bob, 5), "an empty feed is warm now")
	first := r.upload(t, ada, "first")
	require.Equal(t, []idgen.ID{first.ID}, r.home(t, bob, 5))
	require.Equal(t, []idgen.ID{first.ID}, r.home(t, ada, 5), "one's own photos are there, too")
	require.Empty(t, r.home(t, eve, 5))

	// A follow brings the photos from before, and an unfollow takes them away.
	require.NoError(t, r.Follow(t.Context(), eve.ID, ada.ID))
	require.Equal(t, []idgen.ID{first.ID}, r.home(t, eve, 5))
	require.NoError(t, r.Unfollow(t.Context(), eve.ID, ada.ID))
	require.Empty(t, r.home(t, eve, 5))
	r.upload(t, ada, "second")
	require.Empty(t, r.home(t, eve, 5))
	require.Len(t, r.home(t, bob, 5), 2)

	page, err := r.Home(t.Context(), bob.ID, 0, 5)
	require.NoError(t, err)
	require.Equal(t, "second", page.Items[0].Caption)
	require.Equal(t, ada, page.Items[0].Author)

	profile, err := r.Profile(t.Context(), bob.ID, "ada")
	require.NoError(t, err)
	require.Equal(t, store.Profile{User: ada, Photos: 2, Followers: 1, Followed: true}, profile)
	profile, err = r.Profile(t.Context(), 0, "bob")
	require.NoError(t, err)
	require.Equal(t, store.Profile{User: bob, Following: 1}, profile)
	people, err := r.People(t.Context(), bob.ID, 10)
	require.NoError(t, err)
	require.Equal(t, []store.Profile{{User: eve}, {User: ada, Photos: 2, Followers: 1, Followed: true}}, people)

	_, ok := errors.AsType[*store.InvalidError](r.Follow(t.Context(), ada.ID, ada.ID))
	require.True(t, ok)
	require.ErrorIs(t, r.Follow(t.Context(), ada.ID, 12345), store.ErrNotFound)
}

// TestALatePushOfAnUnfollowedAuthorIsNotShown puts a photo into a feed as a
// fan-out does that read the list of followers before an unfollow.
func TestALatePushOfAnUnfollowedAuthorIsNotShown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	require.Empty(t, r.home(t, bob, 5))
	// Half a follow: what is left when the program dies between its two rows.
	_, err := r.cluster.ID(ada.ID).Exec(t.Context(), "insert into follower (user_id, follower_id) values ($1, $2)", ada.ID, bob.ID)
	require.NoError(t, err)
	p := r.upload(t, ada, "late")
	ids, err := r.rdb.Keys(t.Context(), "home:*").Result()
	require.NoError(t, err)
	require.NotEmpty(t, ids, "bob's feed is warm")
	require.Empty(t, r.home(t, bob, 5))
	profile, err := r.Profile(t.Context(), bob.ID, "ada")
	require.NoError(t, err)
	require.False(t, profile.Followed, "the button shows what the feed does")
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID), "the next press makes it whole")
	require.Equal(t, []idgen.ID{p.ID}, r.home(t, bob, 5))
}

// TestFollowAndUnfollowAtOnce presses both buttons from many goroutines in two
// stores. The two rows of a follow must agree in the end, and the feed with them.
func TestFollowAndUnfollowAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	p := r.upload(t, ada, "")
	first := r.Store
	r.open(t, time.Hour)
	for range 10 {
		errs := make([]error, 12)
		var wg sync.WaitGroup
		for i := range errs {
			press := []func(context.Context, idgen.ID, idgen.ID) error{r.Follow, r.Unfollow, first.Follow, first.Unfollow}[i%4]
			wg.Go(func() { errs[i] = press(t.Context(), bob.ID, ada.ID) })
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		require.Equal(t, r.count(t, "following"), r.count(t, "follower"))
		if r.count(t, "following") == 1 {
			require.Equal(t, []idgen.ID{p.ID}, r.home(t, bob, 5))
		} else {
			require.Empty(t, r.home(t, bob, 5))
		}
	}
}

// TestAFollowWaitsForAnUnfollow holds an unfollow up between its two rows, and
// lets another program follow meanwhile.
func TestAFollowWaitsForAnUnfollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	// waiting tells whether a statement on a shard waits for a row.
	waiting := func(who store.User, statement string) (yes bool) {
		require.NoError(t, r.cluster.ID(who.ID).QueryRow(t.Context(), `select exists (select from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like $1)`, "%"+statement+"%").Scan(&yes))
		return yes
	}
	hold, err := r.cluster.ID(ada.ID).Begin(t.Context())
	require.NoError(t, err)
	_, err = hold.Exec(t.Context(), "select from follower for update")
	require.NoError(t, err)
	unfollowed, followed := make(chan error, 1), make(chan error, 1)
	go func() { unfollowed <- r.Unfollow(t.Context(), bob.ID, ada.ID) }()
	eventually(t, "the unfollow is held up", func() bool { return waiting(ada, "delete from follower") })
	go func() { followed <- r.Follow(t.Context(), bob.ID, ada.ID) }()
	eventually(t, "the follow waits, or does not", func() bool { return len(followed) > 0 || waiting(bob, "for no key update") })
	require.NoError(t, hold.Rollback(t.Context()))
	require.NoError(t, <-unfollowed)
	require.NoError(t, <-followed)
	require.Equal(t, 1, r.count(t, "following"))
	require.Equal(t, 1, r.count(t, "follower"))
}

func TestLikesAreCountedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	p := r.upload(t, ada, "")
	const fans = 40
	errs := make([]error, fans*5)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			fan := idgen.ID(1 + i%fans)
			errs[i] = r.Like(t.Context(), fan, p.ID)
			if i%4 == 0 {
				_, err := r.Post(t.Context(), fan, p.ID) // fills the cache meanwhile
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	likes := func(viewer idgen.ID) (int, bool) {
		post, err := r.Post(t.Context(), viewer, p.ID)
		require.NoError(t, err)
		return post.Likes, post.Liked
	}
	n, liked := likes(1)
	require.Equal(t, fans, n)
	require.True(t, liked)
	require.NoError(t, r.Unlike(t.Context(), 1, p.ID))
	require.NoError(t, r.Unlike(t.Context(), 1, p.ID))
	n, liked = likes(1)
	require.Equal(t, fans-1, n)
	require.False(t, liked)
	require.ErrorIs(t, r.Like(t.Context(), 1, p.ID+1), store.ErrNotFound)
	require.ErrorIs(t, r.Like(t.Context(), 1, 8191<<10), store.ErrNotFound)
	_, err := r.Post(t.Context(), 0, p.ID+1)
	require.ErrorIs(t, err, store.ErrNotFound)
}

func TestAPhotoReachesEveryFollower(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	// bob comes last, behind more followers than a fan-out reads at a time.
	_, err := r.cluster.ID(ada.ID).Exec(t.Context(),
		"insert into follower (user_id, follower_id) select $1, generate_series(1, 6000)", ada.ID)
	require.NoError(t, err)
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Empty(t, r.home(t, bob, 5))
	p := r.upload(t, ada, "")
	require.Equal(t, []idgen.ID{p.ID}, r.home(t, bob, 5))
}

// TestAFollowBringsMoreThanAFeedKeeps follows somebody with more photos than
// Redis keeps, by a feed that is warm and short.
func TestAFollowBringsMoreThanAFeedKeeps(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	own := r.upload(t, bob, "")
	require.Equal(t, []idgen.ID{own.ID}, r.home(t, bob, 5))
	_, err := r.cluster.ID(ada.ID).Exec(t.Context(), `insert into photo (id, author_id, caption)
		select $1::bigint + (i::bigint << 23), $1, '' from generate_series(1, 1900) i`, ada.ID)
	require.NoError(t, err)
	want := []idgen.ID{own.ID}
	for i := range idgen.ID(1900) {
		want = append(want, ada.ID+(i+1)<<23)
	}
	slices.Sort(want)
	slices.Reverse(want)
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, want, r.home(t, bob, 100))
	require.NoError(t, r.Unfollow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, []idgen.ID{own.ID}, r.home(t, bob, 100))
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, want, r.home(t, bob, 100), "the same again")
}

// TestTwoStoresShareTheirFeeds is two programs on the same servers.
func TestTwoStoresShareTheirFeeds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	other := *r
	other.open(t, time.Hour)
	require.Empty(t, other.home(t, bob, 5), "an empty feed is warm now")
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	first := r.upload(t, ada, "")
	require.Equal(t, []idgen.ID{first.ID}, other.home(t, bob, 5))
	second := other.upload(t, ada, "")
	require.Equal(t, []idgen.ID{second.ID, first.ID}, r.home(t, bob, 5))
	require.NoError(t, other.Unfollow(t.Context(), bob.ID, ada.ID))
	require.Empty(t, r.home(t, bob, 5))
}

// activity returns the lines of a user's activity page, the latest first.
func (r *rig) activity(t *testing.T, viewer store.User) (lines []string) {
	page, err := r.Activity(t.Context(), viewer.ID, 0, 20)
	require.NoError(t, err)
	for _, n := range page.Items {
		var names []string
		for _, who := range n.Actors {
			names = append(names, who.Name)
		}
		lines = append(lines, fmt.Sprintf("%d %v", n.Photo, names))
	}
	return lines
}

func TestActivity(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob, cleo := r.signUp(t, "ada"), r.signUp(t, "bob"), r.signUp(t, "cleo")
	require.Empty(t, r.activity(t, ada), "an empty feed is warm now")
	p := r.upload(t, ada, "")
	for _, fan := range []store.User{bob, cleo, ada} {
		require.NoError(t, r.Like(t.Context(), fan.ID, p.ID))
		require.NoError(t, r.Like(t.Context(), fan.ID, p.ID), "twice is once")
	}
	liked := fmt.Sprintf("%d [cleo bob]", p.ID)
	require.Equal(t, []string{liked}, r.activity(t, ada))
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, []string{"0 [bob]", liked}, r.activity(t, ada))
	require.NoError(t, r.rdb.FlushAll(t.Context()).Err())
	require.Equal(t, []string{"0 [bob]", liked}, r.activity(t, ada), "rebuilt")
	require.NoError(t, r.Unlike(t.Context(), cleo.ID, p.ID))
	require.NoError(t, r.Unfollow(t.Context(), bob.ID, ada.ID))
	require.NoError(t, r.Unfollow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, []string{fmt.Sprintf("%d [bob]", p.ID)}, r.activity(t, ada))

	// What Redis was not told it learns from the repair.
	require.NoError(t, r.redis.Kill())
	require.NoError(t, r.Like(t.Context(), cleo.ID, p.ID))
	require.Equal(t, 1, r.count(t, "news where not told"))
	require.NoError(t, r.redis.Restart(t.Context()))
	eventually(t, "the repair has passed", func() bool { return r.count(t, "news where not told") == 0 })
	require.Equal(t, []string{liked}, r.activity(t, ada))
}

func TestUnseenIsWhatCameAfterTheLastLook(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	unseen := func(who store.User) [2]int {
		n, err := r.Unseen(t.Context(), who.ID)
		require.NoError(t, err)
		return [2]int{n.Home.N, n.Activity.N}
	}
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, [2]int{0, 1}, unseen(ada))
	require.Equal(t, [2]int{0, 0}, unseen(bob))
	first, second := r.upload(t, ada, ""), r.upload(t, ada, "")
	require.Equal(t, [2]int{0, 1}, unseen(ada), "one's own photo is nothing new")
	require.Equal(t, [2]int{2, 0}, unseen(bob))
	r.SeenHome(t.Context(), bob.ID, second.ID)
	r.SeenHome(t.Context(), bob.ID, first.ID)
	require.Equal(t, [2]int{0, 0}, unseen(bob), "a mark never goes back")
	r.upload(t, bob, "")
	require.NoError(t, r.Like(t.Context(), ada.ID, r.upload(t, bob, "").ID))
	r.upload(t, ada, "")
	require.Equal(t, [2]int{1, 1}, unseen(bob))
	require.NoError(t, r.rdb.FlushAll(t.Context()).Err())
	require.Equal(t, [2]int{1, 1}, unseen(bob), "the mark is in PostgreSQL, too")
	page, err := r.Activity(t.Context(), bob.ID, 0, 5)
	require.NoError(t, err)
	r.SeenActivity(t.Context(), bob.ID, page.Items[0].ID)
	require.Equal(t, [2]int{1, 0}, unseen(bob))
}

// TestIDsGoOnBehindAClock opens a store whose clock is behind its newest ID, as
// after a step back.
func TestIDsGoOnBehindAClock(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	var floor idgen.ID
	ahead := ada.ID + 10*60*1000<<23 // ten minutes
	require.NoError(t, r.cluster.ID(ada.ID).QueryRow(t.Context(), "select id_floor($1)", ahead).Scan(&floor))
	require.NoError(t, r.Close())
	r.open(t, time.Hour)
	p := r.upload(t, ada, "")
	require.Greater(t, p.ID, floor)
	require.Equal(t, idgen.Default.Shard(ada.ID), idgen.Default.Shard(p.ID))
}

func TestGridPages(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	var want []idgen.ID
	for i := range 7 {
		want = append(want, r.upload(t, ada, fmt.Sprint(i)).ID)
	}
	slices.Reverse(want)
	var got []idgen.ID
	for before := idgen.ID(0); ; {
		page, err := r.Grid(t.Context(), ada.ID, before, 3)
		require.NoError(t, err)
		for _, p := range page.Items {
			got = append(got, p.ID)
		}
		if before = page.Next; before == 0 {
			break
		}
	}
	require.Equal(t, want, got)
}

func TestImagesAreStoredInEverySize(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.upload(t, r.signUp(t, "ada"), "")
	require.Len(t, r.files(t), 3)
	for _, size := range imaging.Sizes() {
		data, err := r.Image(t.Context(), p.ID, size)
		require.NoError(t, err)
		require.Equal(t, "\xff\xd8", string(data[:2]))
	}
	_, err := r.Image(t.Context(), p.ID+1, imaging.Large)
	require.ErrorIs(t, err, store.ErrNotFound)
}
