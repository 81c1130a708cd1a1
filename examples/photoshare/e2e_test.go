package main

import (
	"bytes"
	"image/jpeg"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
)

func TestAPhotoTravelsTheWholeSystem(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada, bob := s.signUp(t, "ada"), s.signUp(t, "bob")
	require.Contains(t, bob.get("/").body, "Follow someone")
	require.Equal(t, "/u/ada", bob.post("/u/ada/follow", nil).path)

	code := ada.share(readPhoto(t, "coffee"), "First one <b>today</b>.")
	require.Equal(t, [][]string{{code}}, bob.feed())
	require.Contains(t, bob.get("/").body, "First one <b>today</b>.")
	raw := bob.get("/").body
	require.NotContains(t, strings.ReplaceAll(raw, "First one <b>today</b>.", ""), "<b>today", "shown once, as text")

	for _, size := range imaging.Sizes() {
		image := bob.do("GET", "/photos/"+code+"_"+size.String()+".jpg", "", nil)
		require.Equal(t, http.StatusOK, image.status)
	}

	require.Contains(t, bob.get("/p/"+code).body, "0 likes")
	require.Contains(t, bob.post("/p/"+code+"/like", nil).body, "1 like")
	require.Contains(t, ada.get("/p/"+code).body, "1 like")
	require.Contains(t, bob.post("/p/"+code+"/unlike", nil).body, "0 likes")

	// 29 more; every second one by someone else bob follows.
	cleo := s.signUp(t, "cleo")
	bob.post("/u/cleo/follow", nil)
	want := []string{code}
	for i := range 29 {
		author := []*person{ada, cleo}[i%2]
		want = append(want, author.share(readPhoto(t, motifs[i%len(motifs)].file), "photo"))
	}
	slices.Reverse(want)
	pages := bob.feed()
	require.Greater(t, len(pages), 2)
	require.Equal(t, want, slices.Concat(pages...), "30 photos without a gap or a repeat, newest first")

	// A photo that arrives while bob pages does not shift what he has not seen.
	first := bob.get("/")
	newer := ada.share(readPhoto(t, "rocket"), "meanwhile")
	second := bob.get(older.FindStringSubmatch(first.body)[1])
	var rest []string
	for _, match := range postID.FindAllStringSubmatch(second.body, -1) {
		rest = append(rest, match[1])
	}
	require.Equal(t, pages[1], rest)
	require.Equal(t, newer, bob.feed()[0][0])

	// Who is not signed in sees photos and profiles, and no feed.
	guest := s.visitor(t, "")
	require.Equal(t, http.StatusOK, guest.get("/p/"+code).status)
	require.Contains(t, guest.get("/u/ada").body, `id="g-`+code)
	require.Empty(t, guest.feed()[0])
	require.Equal(t, "/login", guest.get("/upload").path)
	bob.post("/logout", nil)
	require.Equal(t, "/login", bob.get("/upload").path)
}

// TestWhatIsNew shows the numbers on the tabs, and what is behind them.
func TestWhatIsNew(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada, bob := s.signUp(t, "ada"), s.signUp(t, "bob")
	badges := func(p *person) [2]string {
		body := p.get("/people").body
		return [2]string{badge(body, "home"), badge(body, "activity")}
	}
	bob.post("/u/ada/follow", nil)
	code := ada.share(readPhoto(t, "coffee"), "")
	require.Equal(t, [2]string{"", "1"}, badges(ada), "a follower, and not one's own photo")
	require.Equal(t, [2]string{"1", ""}, badges(bob))
	require.Equal(t, [][]string{{code}}, bob.feed())
	require.Equal(t, [2]string{"", ""}, badges(bob), "seen")
	bob.post("/p/"+code+"/like", nil)
	ada.share(readPhoto(t, "rocket"), "")
	require.Contains(t, bob.get("/").body, `<p id="new">1 new photo</p>`)
	require.NotContains(t, bob.get("/").body, `id="new"`, "only once")

	require.Equal(t, [2]string{"", "2"}, badges(ada))
	page := ada.get("/activity").body
	require.Contains(t, page, `<b>bob</b> liked your photo`)
	require.Contains(t, page, `<b>bob</b> follows you`)
	require.Equal(t, 2, strings.Count(page, `class="new"`))
	require.Equal(t, 0, strings.Count(ada.get("/activity").body, `class="new"`))
	require.Equal(t, [2]string{"", ""}, badges(ada))
	require.Equal(t, "/login", s.visitor(t, "").get("/activity").path)
}

// badge returns the number on a tab.
func badge(body, tab string) string {
	_, rest, _ := strings.Cut(body, `id="tab-`+tab+`"`)
	link, _, _ := strings.Cut(rest, "</a>")
	_, number, _ := strings.Cut(link, `class="badge">`)
	number, _, _ = strings.Cut(number, "<")
	return number
}

// TestBadInput shows that each bad request gets its status and a page that says
// what to do, and stores nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada := s.signUp(t, "ada")
	code := ada.share(readPhoto(t, "chelsea"), "the one good photo")
	good := readPhoto(t, "coffee")
	bomb := bytes.Clone(good)
	copy(bomb[bytes.Index(bomb, []byte{0xff, 0xc0})+5:], []byte{0xff, 0xff, 0xff, 0xff})
	_, err := jpeg.DecodeConfig(bytes.NewReader(bomb))
	require.NoError(t, err, "the bomb has a good header")

	upload := func(photo []byte, caption string) func() answer {
		return func() answer { return ada.upload(photo, caption) }
	}
	get := func(path string) func() answer { return func() answer { return ada.get(path) } }
	for _, test := range []struct {
		name   string
		do     func() answer
		status int
		text   string
	}{
		{"NotAnImage", upload([]byte("<html>hello</html>"), ""), 415, "JPEG"},
		{"EmptyFile", upload(nil, ""), 422, "photo"},
		{"Truncated", upload(good[:len(good)/2], ""), 422, "damaged"},
		{"Bomb", upload(bomb, ""), 422, "too many pixels"},
		{"MoreThan10MB", upload(append(bytes.Clone(good), make([]byte, imaging.MaxBytes)...), ""), 413, "10 MB"},
		{"LongCaption", upload(good, strings.Repeat("é", 2201)), 422, "2201 characters"},
		{"UnknownUser", get("/u/nobody"), 404, "start"},
		{"UnknownPhoto", get("/p/B"), 404, "start"},
		{"PhotoOfAnUnknownShard", get("/p/" + "fAA"), 404, "start"},
		{"NoCode", get("/p/%20"), 404, "start"},
		{"UnknownImage", get("/photos/B_612.jpg"), 404, "start"},
		{"CursorThatIsNoID", get("/?before=yesterday"), 400, "start"},
		{"CursorOnAProfile", get("/u/ada?before=-1"), 400, "start"},
		{"TakenName", func() answer {
			return s.visitor(t, "").post("/signup", url.Values{"name": {"ada"}, "password": {"correct horse"}})
		}, 409, "this name already"},
		{"WrongPassword", func() answer {
			return s.visitor(t, "").post("/login", url.Values{"name": {"ada"}, "password": {"wrong horse"}})
		}, 401, "password"},
		{"FollowNobody", func() answer { return ada.post("/u/nobody/follow", nil) }, 404, "start"},
		{"LikeNothing", func() answer { return ada.post("/p/B/like", nil) }, 404, "start"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := test.do()
			require.Equal(t, test.status, a.status, a.body)
			require.Contains(t, a.body, test.text)
			require.Equal(t, [][]string{{code}}, ada.feed())
		})
	}
}

// TestLosingServers loses one after the other, under people who are reading.
func TestLosingServers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada, bob := s.signUp(t, "ada"), s.signUp(t, "bob")
	bob.post("/u/ada/follow", nil)
	var want []string
	for i := range 12 {
		want = append([]string{ada.share(readPhoto(t, motifs[i%len(motifs)].file), "photo")}, want...)
	}
	require.Equal(t, want, slices.Concat(bob.feed()...))

	require.NoError(t, s.memcached.Kill())
	require.Equal(t, want, slices.Concat(bob.feed()...), "memcached is gone")

	require.NoError(t, s.rdb.FlushAll(t.Context()).Err())
	require.Equal(t, "/login", bob.get("/people").path, "the sessions were in Redis")
	bob.logIn()
	require.Equal(t, want, slices.Concat(bob.feed()...), "Redis was flushed")

	require.NoError(t, s.redis.Kill())
	require.Equal(t, http.StatusServiceUnavailable, bob.get("/").status, "nobody is taken for signed out")
	require.NoError(t, s.redis.Restart(t.Context()))
	bob.logIn()
	require.Equal(t, want, slices.Concat(bob.feed()...), "Redis came back empty")

	// A node of PostgreSQL is no copy. Who needs it waits, and nothing is lost.
	require.NoError(t, s.postgres[1].Kill())
	require.Equal(t, http.StatusServiceUnavailable, bob.get("/people").status)
	require.NoError(t, s.postgres[1].Restart(t.Context()))
	require.Eventually(t, func() bool { return bob.get("/people").status == http.StatusOK }, 20*time.Second, 10*time.Millisecond)
	require.Equal(t, want, slices.Concat(bob.feed()...))

	require.NoError(t, s.memcached.Restart(t.Context()))
	ada.logIn()
	want = append([]string{ada.share(readPhoto(t, "rocket"), "all is well")}, want...)
	require.Equal(t, want, slices.Concat(bob.feed()...))
}
