package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
	"github.com/shardgram/shardgram/shard"
)

// eventually waits for what the repair brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	require.Eventually(t, ok, 20*time.Second, 20*time.Millisecond, what)
}

// nothingIsLeft waits until no trace of an upload is left, row or file.
func (r *rig) nothingIsLeft(t *testing.T) {
	eventually(t, "the upload is cleared away", func() bool {
		return r.count(t, "upload where given_up_at is null") == 0 && len(r.files(t)) == 0
	})
	require.Zero(t, r.count(t, "photo"))
}

func TestBadUploadsStoreNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	bomb := bytes.Clone(picture())
	// The frame header has height and width after its marker, length and
	// precision.
	frame := bytes.Index(bomb, []byte{0xff, 0xc0})
	require.Positive(t, frame)
	copy(bomb[frame+5:], []byte{0xff, 0xff, 0xff, 0xff})
	for _, test := range []struct {
		name    string
		jpeg    []byte
		caption string
		want    error
	}{
		{"NotAnImage", []byte("<html>hello</html>"), "", imaging.ErrNotJPEG},
		{"Nothing", nil, "", imaging.ErrNotJPEG},
		{"Truncated", picture()[:len(picture())/2], "", imaging.ErrDamaged},
		{"Bomb", bomb, "", imaging.ErrTooManyPixels},
		{"TooLarge", append(bytes.Clone(picture()), make([]byte, imaging.MaxBytes)...), "", imaging.ErrTooLarge},
		{"LongCaption", picture(), strings.Repeat("ä", store.MaxCaption+1), nil},
		{"CaptionWithNUL", picture(), "a\x00b", nil},
		{"CaptionOfBytes", picture(), "\xff", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := r.Upload(t.Context(), ada.ID, test.caption, test.jpeg)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			} else {
				invalid, ok := errors.AsType[*store.InvalidError](err)
				require.True(t, ok, "%v", err)
				require.Equal(t, "caption", invalid.Field)
			}
			require.Zero(t, r.count(t, "upload"))
			require.Zero(t, r.count(t, "photo"))
			require.Empty(t, r.files(t))
		})
	}
	_, err := r.Upload(t.Context(), ada.ID, strings.Repeat("ä", store.MaxCaption), picture())
	require.NoError(t, err)
}

func TestAFullDiskStoresNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	for failing := 1; failing <= 3; failing++ {
		r.blobs.set(func(n int) error {
			if n == failing {
				return syscall.ENOSPC
			}
			return nil
		})
		_, err := r.Upload(t.Context(), ada.ID, "", picture())
		require.ErrorIs(t, err, syscall.ENOSPC)
		r.nothingIsLeft(t)
	}
	r.blobs.set(nil)
	r.upload(t, ada, "")
	require.Len(t, r.files(t), 3)
}

// TestAnUploadThatDiesIsClearedAway ends the store at each file of an upload, as
// a killed program does, and opens it anew.
func TestAnUploadThatDiesIsClearedAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	for dying := 1; dying <= 3; dying++ {
		died := make(chan struct{})
		forever := make(chan struct{})
		r.blobs.set(func(n int) error {
			if n == dying {
				close(died)
				<-forever
				return errors.New("the program is dead")
			}
			return nil
		})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = r.Store.Upload(t.Context(), ada.ID, "", picture())
		}()
		<-died
		require.Len(t, r.files(t), dying-1)
		r.nothingIsLeft(t) // the repair does not wait for the dead
		r.blobs.set(nil)
		close(forever)
		<-ended
		r.nothingIsLeft(t)
	}
}

// TestAnUploadIsClearedAwayThoughItsDatabaseDied kills PostgreSQL when the files
// are there and the row is not.
func TestAnUploadIsClearedAwayThoughItsDatabaseDied(t *testing.T) {
	t.Parallel()
	host := testserver.Host(t)
	pg, err := host.Postgres(t.Context(), "pg", localserver.PostgresConfig{})
	require.NoError(t, err)
	r := newRigOn(t, host, shard.Node{Name: "a", DSN: pg.DSN("postgres")})
	ada := r.signUp(t, "ada")
	r.blobs.set(func(n int) error {
		if n == 3 {
			return pg.Kill()
		}
		return nil
	})
	_, err = r.Upload(t.Context(), ada.ID, "", picture())
	e, ok := errors.AsType[*shard.Error](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, "a", e.Node)
	require.Len(t, r.files(t), 3)
	require.NoError(t, pg.Restart(t.Context()))
	eventually(t, "PostgreSQL is back", func() bool {
		_, err := r.cluster.Number(0).Exec(t.Context(), "select 1")
		return err == nil
	})
	r.nothingIsLeft(t)
}

// TestAnUploadClearsUpAfterItself leaves nothing to the repair, even if the
// visitor has left.
func TestAnUploadClearsUpAfterItself(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	require.NoError(t, r.Close())
	r.open(t, time.Hour)
	ada := r.signUp(t, "ada")
	ctx, leave := context.WithCancel(t.Context())
	r.blobs.set(func(n int) error {
		if n == 2 {
			leave()
			return ctx.Err()
		}
		return nil
	})
	_, err := r.Upload(ctx, ada.ID, "", picture())
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, r.count(t, "upload"))
	require.Empty(t, r.files(t))

	// When the photo is there after all, as after a commit whose answer was
	// lost, its files stay.
	r.blobs.set(nil)
	p := r.upload(t, ada, "")
	require.NoError(t, store.Abandon(r.Store, t.Context(), p.ID, 0))
	require.Len(t, r.files(t), 3)
}

// TestAFanOutThatCannotReadTheFollowersIsRepeated takes their table away.
func TestAFanOutThatCannotReadTheFollowersIsRepeated(t *testing.T) {
	t.Parallel()
	r, bob, want := newFeed(t)
	ada, err := r.UserByName(t.Context(), "ada")
	require.NoError(t, err)
	home := r.cluster.ID(ada.ID)
	_, err = home.Exec(t.Context(), "alter table follower rename to gone")
	require.NoError(t, err)
	p, err := r.Upload(t.Context(), ada.ID, "", picture())
	require.NoError(t, err)
	eventually(t, "it was tried", func() bool {
		return r.count(t, "jobs.river_job where state <> 'completed' and metadata ? 'snoozes'") > 0
	})
	require.Equal(t, want, r.home(t, bob, 4))
	_, err = home.Exec(t.Context(), "alter table gone rename to follower")
	require.NoError(t, err)
	r.fannedOut(t)
	require.Equal(t, append([]idgen.ID{p.ID}, want...), r.home(t, bob, 4))
}

// TestAnUploadThatIsYoungIsLeftAlone lets the repair pass by an upload that may
// still be under way. That it has passed shows a fan-out of the same shard, which
// comes after the uploads.
func TestAnUploadThatIsYoungIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	p := r.upload(t, ada, "")
	require.NoError(t, r.Close())
	home, young := r.cluster.ID(ada.ID), p.ID+1<<23
	_, err := home.Exec(t.Context(), "insert into upload (photo_id) values ($1)", young)
	require.NoError(t, err)
	_, err = home.Exec(t.Context(), "insert into stale_feed (user_id, since) values ($1, now() - interval '2 h')", ada.ID)
	require.NoError(t, err)
	r.open(t, time.Hour)
	eventually(t, "the repair has passed", func() bool { return r.count(t, "stale_feed") == 0 })
	require.Equal(t, 1, r.count(t, "upload where given_up_at is null"))
}

// TestASlowUploadThatWasGivenUpStoresNothing lets the repair clear an upload
// away whose program is only slow: it must notice.
func TestASlowUploadThatWasGivenUpStoresNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	r.blobs.set(func(n int) error {
		if n == 3 {
			eventually(t, "the repair gives it up", func() bool { return r.count(t, "upload where given_up_at is null") == 0 })
		}
		return nil
	})
	_, err := r.Upload(t.Context(), ada.ID, "", picture())
	require.ErrorContains(t, err, "given up")
	r.nothingIsLeft(t)
	require.Zero(t, r.count(t, "jobs.river_job"), "the job went with the transaction")
}

func TestTheFeedIsRightWithoutMemcached(t *testing.T) {
	t.Parallel()
	r, bob, want := newFeed(t)
	require.NoError(t, r.memcache.Kill())
	require.Equal(t, want, r.home(t, bob, 4))
	ada, err := r.UserByName(t.Context(), "ada")
	require.NoError(t, err)
	p := r.upload(t, ada, "without memcached")
	require.Equal(t, append([]idgen.ID{p.ID}, want...), r.home(t, bob, 4))
	require.NoError(t, r.Like(t.Context(), bob.ID, p.ID))
	require.NoError(t, r.memcache.Restart(t.Context()))
	eventually(t, "the like is seen", func() bool {
		post, err := r.Post(t.Context(), bob.ID, p.ID)
		return err == nil && post.Likes == 1 && post.Liked
	})
}

func TestTheFeedIsRightAfterRedisLostEverything(t *testing.T) {
	t.Parallel()
	r, bob, want := newFeed(t)
	for _, lose := range []func(){
		func() { require.NoError(t, r.rdb.FlushAll(t.Context()).Err()) },
		func() {
			require.NoError(t, r.rdb.FlushAll(t.Context()).Err()) // it keeps its data otherwise
			require.NoError(t, r.redis.Kill())
			require.NoError(t, r.redis.Restart(t.Context()))
		},
	} {
		lose()
		size, err := r.rdb.DBSize(t.Context()).Result()
		require.NoError(t, err)
		require.Zero(t, size, "it is empty")
		require.Equal(t, want, r.home(t, bob, 4), "rebuilt")
		require.Equal(t, want, r.home(t, bob, 4), "and kept")
		size, err = r.rdb.DBSize(t.Context()).Result()
		require.NoError(t, err)
		require.Positive(t, size)
	}
}

func TestTheFeedIsRightWhileRedisIsGone(t *testing.T) {
	t.Parallel()
	r, bob, want := newFeed(t)
	ada, err := r.UserByName(t.Context(), "ada")
	require.NoError(t, err)
	require.NoError(t, r.redis.Kill())
	require.Equal(t, want, r.home(t, bob, 4))

	// A photo that cannot be pushed now is pushed later.
	p, err := r.Upload(t.Context(), ada.ID, "while Redis is gone", picture())
	require.NoError(t, err)
	require.Positive(t, r.count(t, unfinished))
	require.Equal(t, append([]idgen.ID{p.ID}, want...), r.home(t, bob, 4))
	eventually(t, "it was tried several times", func() bool {
		return r.count(t, "jobs.river_job where (metadata->>'snoozes')::int >= 3") > 0
	})
	require.Positive(t, r.count(t, unfinished))
	require.NoError(t, r.redis.Restart(t.Context()))
	begin := time.Now()
	r.fannedOut(t)
	require.Less(t, time.Since(begin), 8*time.Second, "it does not wait for minutes")
	require.Equal(t, append([]idgen.ID{p.ID}, want...), r.home(t, bob, 4))
}

// TestAFollowIsSeenThoughRedisWasGone follows somebody while the feed, which is
// warm and comes back, cannot be told.
func TestAFollowIsSeenThoughRedisWasGone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	p := r.upload(t, ada, "")
	require.Empty(t, r.home(t, bob, 4))
	require.NoError(t, r.redis.Kill())
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.Equal(t, 1, r.count(t, "stale_feed"), "bob's home")
	require.Equal(t, 1, r.count(t, "news where not told"), "ada's activity")
	require.NoError(t, r.redis.Restart(t.Context()))
	eventually(t, "the repair renews the feed", func() bool { return r.count(t, "stale_feed") == 0 })
	require.Equal(t, []idgen.ID{p.ID}, r.home(t, bob, 4))
}

// TestNewsReachTheirOwnerThoughTheProgramDied leaves what a program leaves that
// dies in the middle of a follow, and between a like and its push, with an
// activity feed that is warm.
func TestNewsReachTheirOwnerThoughTheProgramDied(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob := r.signUp(t, "ada"), r.signUp(t, "bob")
	p := r.upload(t, ada, "")
	require.Empty(t, r.activity(t, ada))
	home := r.cluster.ID(bob.ID)
	_, err := home.Exec(t.Context(), "alter table stale_feed rename to gone")
	require.NoError(t, err)
	require.Error(t, r.Follow(t.Context(), bob.ID, ada.ID))
	_, err = home.Exec(t.Context(), "alter table gone rename to stale_feed")
	require.NoError(t, err)
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	eventually(t, "the follow is told", func() bool { return r.count(t, "news where not told") == 0 })
	require.Equal(t, []string{"0 [bob]"}, r.activity(t, ada))

	_, err = r.cluster.ID(p.ID).Exec(t.Context(), `with l as (insert into liked values ($1, $2))
		insert into news (owner_id, actor_id, photo_id) values ($3, $2, $1)`, p.ID, bob.ID, ada.ID)
	require.NoError(t, err)
	eventually(t, "the like is told", func() bool { return r.count(t, "news where not told") == 0 })
	require.Equal(t, []string{fmt.Sprintf("%d [bob]", p.ID), "0 [bob]"}, r.activity(t, ada))
}

// TestAFollowLeavesAnEarlierOneToTheRepair follows somebody while the feed still
// lacks what another follow could not tell it.
func TestAFollowLeavesAnEarlierOneToTheRepair(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada, bob, eve := r.signUp(t, "ada"), r.signUp(t, "bob"), r.signUp(t, "eve")
	want := []idgen.ID{r.upload(t, ada, "").ID, r.upload(t, eve, "").ID}
	slices.Reverse(want)
	require.Empty(t, r.home(t, bob, 4))
	require.NoError(t, r.Close()) // the repair, too
	for _, sql := range []string{
		"insert into following (user_id, followed_id) values ($1, $2)",
		"insert into stale_feed (user_id) select $1 where $2 > 0::bigint",
	} {
		_, err := r.cluster.ID(bob.ID).Exec(t.Context(), sql, bob.ID, ada.ID)
		require.NoError(t, err)
	}
	require.NoError(t, r.Follow(t.Context(), bob.ID, eve.ID))
	require.Equal(t, want[:1], r.home(t, bob, 4))
	r.open(t, 100*time.Millisecond)
	eventually(t, "the repair renews the feed", func() bool { return r.count(t, "stale_feed") == 0 })
	require.Equal(t, want, r.home(t, bob, 4))
}

// TestALikeIsSeenThoughMemcachedHung likes a photo whose copy in memcached
// cannot be deleted, and is there again afterwards.
func TestALikeIsSeenThoughMemcachedHung(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ada := r.signUp(t, "ada")
	p := r.upload(t, ada, "")
	_, err := r.Post(t.Context(), ada.ID, p.ID)
	require.NoError(t, err)
	require.NoError(t, r.memcache.Pause())
	require.NoError(t, r.Like(t.Context(), ada.ID, p.ID))
	require.Equal(t, 1, r.count(t, "stale_photo"))
	require.NoError(t, r.memcache.Resume())
	eventually(t, "the repair deletes the copy", func() bool { return r.count(t, "stale_photo") == 0 })
	post, err := r.Post(t.Context(), ada.ID, p.ID)
	require.NoError(t, err)
	require.Equal(t, 1, post.Likes)
}

// TestAPhotoIsPushedThoughTheProgramDied stores what a program leaves that dies
// after the commit of a photo, with a feed that is warm.
func TestAPhotoIsPushedThoughTheProgramDied(t *testing.T) {
	t.Parallel()
	r, bob, want := newFeed(t)
	ada, err := r.UserByName(t.Context(), "ada")
	require.NoError(t, err)
	require.NotEmpty(t, r.home(t, ada, 4))
	require.NoError(t, r.Close())
	p, err := r.Upload(t.Context(), ada.ID, "its workers are dead", picture())
	require.NoError(t, err)
	require.Equal(t, p.ID, r.home(t, ada, 4)[0], "the author sees it at once")
	require.Positive(t, r.count(t, unfinished))
	require.Equal(t, want, r.home(t, bob, 4))
	r.open(t, time.Hour)
	r.fannedOut(t)
	require.Equal(t, append([]idgen.ID{p.ID}, want...), r.home(t, bob, 4))
}

// TestAnOldDataFolderKeepsItsFanOuts migrates shards that have photos which are
// not in all feeds.
func TestAnOldDataFolderKeepsItsFanOuts(t *testing.T) {
	t.Parallel()
	node := shard.Node{Name: "a", DSN: testserver.Postgres(t)}
	old, err := shard.Open(t.Context(), shard.Static(4, node), shard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, old.Close()) })
	files := fstest.MapFS{}
	for _, name := range []string{"0001_photoshare.sql", "0002_next_id.sql"} {
		data, err := os.ReadFile("migrations/" + name)
		require.NoError(t, err)
		files[name] = &fstest.MapFile{Data: data}
	}
	_, err = old.Migrate(t.Context(), files, shard.MigrateConfig{})
	require.NoError(t, err)
	var author, photo idgen.ID
	home := old.Key("ada")
	require.NoError(t, home.QueryRow(t.Context(), "insert into account (name, password) values ('ada', '') returning id").Scan(&author))
	require.NoError(t, home.QueryRow(t.Context(), "insert into photo (id, author_id, caption) values ($1::bigint + (1::bigint << 23), $1, '') returning id", author).Scan(&photo))
	_, err = home.Exec(t.Context(), "insert into fanout (photo_id) values ($1)", photo)
	require.NoError(t, err)

	r := newRigOn(t, testserver.Host(t), node)
	r.fannedOut(t)
	var ids []int64
	require.NoError(t, home.QueryRow(t.Context(), `select array(select jsonb_array_elements(args->'ids')::bigint)
		from jobs.river_job where (args->>'author')::bigint = $1`, author).Scan(&ids))
	require.Equal(t, []int64{int64(photo)}, ids)
	p := r.upload(t, store.User{ID: author}, "")
	require.Equal(t, []idgen.ID{p.ID, photo}, r.home(t, store.User{ID: author}, 5))
}

// newFeed returns a reader whose feed has ten photos of two authors, and what it
// must show.
func newFeed(t *testing.T) (*rig, store.User, []idgen.ID) {
	r := newRig(t)
	ada, bob, eve := r.signUp(t, "ada"), r.signUp(t, "bob"), r.signUp(t, "eve")
	require.NoError(t, r.Follow(t.Context(), bob.ID, ada.ID))
	require.NoError(t, r.Follow(t.Context(), bob.ID, eve.ID))
	var ids []idgen.ID
	for range 5 {
		ids = append(ids, r.upload(t, eve, "").ID, r.upload(t, ada, "").ID)
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	require.Equal(t, ids, r.home(t, bob, 4))
	return r, bob, ids
}
