package web_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/examples/photoshare/web"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/testserver"
)

var (
	anna   = store.User{ID: 1<<40 | 3, Name: "anna"}
	ben    = store.User{ID: 1<<40 | 4, Name: "._ben"}
	nobody store.User
)

// photo returns a photo with a caption that wants to be a program.
func photo(seq int) store.Photo {
	return store.Photo{ID: idgen.ID(9<<40 | seq), Author: ben.ID, Caption: "<script>alert(1)</script>\nline \"two\"", Likes: seq}
}

func post3() []store.Post {
	return []store.Post{
		{Photo: photo(1), Author: ben},
		{Photo: photo(2), Author: ben, Liked: true},
		{Photo: store.Photo{ID: idgen.ID(9<<40 | 1234), Author: anna.ID, Likes: 1234}, Author: anna},
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	feed := store.Page[store.Post]{Items: post3(), Next: 77}
	grid := store.Page[store.Photo]{Items: []store.Photo{photo(1), photo(2)}, Next: 78}
	who := store.Profile{User: ben, Photos: 1, Followers: 1234, Following: 2}
	followed := who
	followed.Followed = true
	seen := []string{"error"} // by TestErrorsBecomePages
	for _, test := range []struct {
		name, page, tab string
		viewer          store.User
		data            any
		has, hasNot     []string
	}{
		{"Landing", "landing", "", nobody, web.Account{New: true}, []string{`id="signup"`, `href="/login"`, `action="/signup"`, `autocomplete="new-password"`}, []string{`class="tabs"`}},
		{"SignUp", "signup", "", nobody, web.Account{New: true, Next: "/p/B"}, []string{`id="signup"`, `href="/login?next=%2fp%2fB"`, `id="name"`, `id="password"`, `name="signup"`}, nil},
		{"LogIn", "login", "", nobody, web.Account{}, []string{`id="login"`, `href="/signup"`, `autocomplete="current-password"`, `name="login"`}, []string{"problem"}},
		{"HomeTop", "home", "home", anna, web.Feed{feed, true, 0}, []string{
			`id="p-` + photo(1).ID.Short() + `"`, `/like"`, `/unlike"`, `class="like on" name="unlike"`, `name="back" value="/here?x=1"`,
			`id="older" href="/?before=77"`, `>1 like<`, `>2 likes<`, `>1,234 likes<`, `&lt;script&gt;`,
			`alt="Photo by ._ben: &lt;script&gt;alert(1)&lt;/script&gt; line &#34;two&#34;"`, `alt="Photo by anna"`, `id="tab-home" aria-current="page"`,
		}, []string{"<script", `class="empty"`}},
		{"HomeNew", "home", "home", anna, web.Feed{feed, true, 1234}, []string{`<p id="new">1,234 new photos</p>`}, nil},
		{"HomeOneNew", "home", "home", anna, web.Feed{feed, true, 1}, []string{`<p id="new">1 new photo</p>`}, nil},
		{"HomeEnd", "home", "home", anna, web.Feed{store.Page[store.Post]{Items: post3()}, false, 0}, []string{"You have seen everything", `id="top" href="/"`}, []string{`id="older"`}},
		{"HomeEmpty", "home", "home", anna, web.Feed{store.Page[store.Post]{}, true, 0}, []string{"Follow someone", `href="/people"`, `class="empty"`}, nil},
		{"HomeEmptyBelow", "home", "home", anna, web.Feed{store.Page[store.Post]{}, false, 0}, []string{"Nothing older", `id="top" href="/"`}, []string{"Follow someone"}},
		{"HomeEmptyButMore", "home", "home", anna, web.Feed{store.Page[store.Post]{Next: 5}, true, 0}, []string{`id="older" href="/?before=5"`}, []string{"Follow someone"}},
		{"Photo", "photo", "", anna, post3()[1], []string{`name="unlike"`, `width="612" height="612"`}, []string{`loading="lazy"`}},
		{"PhotoForNobody", "photo", "", nobody, post3()[0], []string{`name="like"`, `href="/login"`}, nil},
		{"ProfileOther", "profile", "", anna, web.ProfilePage{who, grid, false, true}, []string{
			`<b id="photos">1</b> photo<`, `<b id="followers">1,234</b> followers`, `<b id="following">2</b> following`,
			`action="/u/._ben/follow"`, `name="follow"`, `id="older" href="/u/._ben?before=78"`, `id="g-`, `_150.jpg 150w`,
		}, []string{`id="logout"`}},
		{"ProfileFollowed", "profile", "", anna, web.ProfilePage{followed, grid, false, true}, []string{`action="/u/._ben/unfollow"`, `name="unfollow"`}, nil},
		{"ProfileOwn", "profile", "profile", ben, web.ProfilePage{who, grid, true, true}, []string{`id="logout"`, `name="logout"`}, []string{`name="follow"`}},
		{"ProfileEmpty", "profile", "", anna, web.ProfilePage{who, store.Page[store.Photo]{}, false, true}, []string{"No photos yet", "has not shared"}, nil},
		{"ProfileOwnEmpty", "profile", "profile", ben, web.ProfilePage{who, store.Page[store.Photo]{}, true, true}, []string{"No photos yet", `href="/upload"`}, nil},
		{"ProfileEnd", "profile", "", anna, web.ProfilePage{who, store.Page[store.Photo]{}, false, false}, []string{`id="top" href="/u/._ben"`}, []string{"No photos yet"}},
		{"People", "people", "people", anna, []store.Profile{who, followed, {User: anna}}, []string{`id="u-._ben"`, `name="follow"`, `name="unfollow"`, "1 photo · 1,234 followers", "0 photos · 0 followers"}, []string{`action="/u/anna/follow"`}},
		{"PeopleNone", "people", "people", anna, []store.Profile(nil), []string{"Nobody else is here yet"}, nil},
		{"Activity", "activity", "activity", anna, web.Activity{store.Page[store.Notice]{Items: []store.Notice{
			{ID: 30, Photo: photo(1).ID, Actors: []store.User{ben, anna, who.User, ben}},
			{ID: 20, Actors: []store.User{ben}},
			{ID: 10, Actors: []store.User{ben, anna}},
		}, Next: 9}, true, 20}, []string{
			"<b>._ben, anna and 2 others</b> liked your photo", `href="/p/` + photo(1).ID.Short() + `"`,
			"<b>._ben</b> follows you", "<b>._ben and anna</b> follow you", `href="/activity?before=9"`, `<li id="n-e" class="new">`, `<li id="n-U">`,
		}, nil},
		{"ActivityNone", "activity", "activity", anna, web.Activity{Top: true}, []string{"Nothing yet"}, []string{`id="top"`}},
		{"ActivityEnd", "activity", "activity", anna, web.Activity{}, []string{`id="top" href="/activity"`}, []string{"Nothing yet"}},
		{"Upload", "upload", "upload", anna, web.Draft{}, []string{`id="photo" name="photo" type="file"`, `enctype="multipart/form-data"`, `maxlength="2200"`, `name="upload"`}, []string{"problem"}},
		{"UploadBadPhoto", "upload", "upload", anna, web.Draft{Caption: "</textarea>", Field: "photo", Problem: "P <i>"}, []string{`id="photo-problem">P &lt;i&gt;<`, `&lt;/textarea&gt;</textarea>`}, nil},
		{"UploadBadCaption", "upload", "upload", anna, web.Draft{Field: "caption", Problem: "P"}, []string{`id="caption-problem"`}, nil},
	} {
		seen = append(seen, test.page)
		t.Run(test.name, func(t *testing.T) {
			w := get(s.Shows(test.page, test.tab, test.viewer, test.data), "/here?x=1")
			body := w.Body.String()
			require.Equal(t, 200, w.Code, body)
			require.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
			for _, part := range test.has {
				require.Contains(t, body, part)
			}
			for _, part := range test.hasNot {
				require.NotContains(t, body, part)
			}
			wellMade(t, body)
		})
	}
	for _, name := range s.Pages() {
		require.Contains(t, seen, name, "every page is tried")
	}
}

// wellMade checks what holds for every page.
func wellMade(t *testing.T, body string) {
	t.Helper()
	all := func(pattern string) []string { return regexp.MustCompile(pattern).FindAllString(body, -1) }
	require.Contains(t, body, `<html lang="en">`)
	require.Len(t, all(`<h1[ >]`), 1)
	require.Len(t, all(`<title>[^<]+</title>`), 1)
	require.NotContains(t, body, "ZgotmplZ", "html/template refused a value")
	require.NotContains(t, body, " style=", "the content security policy ignores it")
	require.NotContains(t, body, "http://", "nothing from elsewhere")
	for _, img := range all(`<img[^>]*>`) {
		require.Regexp(t, ` alt="[^"]+"`, img)
		require.Regexp(t, ` width="\d+" height="\d+"`, img)
	}
	for _, field := range all(`<(input|textarea)[^>]*>`) {
		if !strings.Contains(field, `type="hidden"`) {
			id := regexp.MustCompile(` id="([^"]+)"`).FindStringSubmatch(field)
			require.NotNil(t, id, field)
			require.Contains(t, body, `<label for="`+id[1]+`">`)
		}
	}
	for _, button := range all(`<button[^>]*>`) {
		require.Contains(t, button, ` name="`)
	}
	for _, form := range all(`<form[^>]*>`) {
		require.Regexp(t, ` method="post" action="/[^/"][^"]*"`, form)
	}
	ids := regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(body, -1)
	var unique []string
	for _, id := range ids {
		if id[1] != "u-._ben" { // TestPages lists ben twice
			require.NotContains(t, unique, id[1])
			unique = append(unique, id[1])
		}
	}
	for _, by := range regexp.MustCompile(` aria-describedby="([^"]+)"`).FindAllStringSubmatch(body, -1) {
		for id := range strings.FieldsSeq(by[1]) {
			require.True(t, slices.Contains(unique, id), id)
		}
	}
}

func TestPostsBelowTheFirstScreenLoadLate(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	body := get(s.Shows("home", "home", anna, web.Feed{store.Page[store.Post]{Items: post3()}, true, 0}), "/").Body.String()
	require.Equal(t, 1, strings.Count(body, `loading="lazy"`))
	require.Greater(t, strings.Index(body, `loading="lazy"`), strings.Index(body, "/photos/"+post3()[2].ID.Short()))
}

func TestPagesAreNotShared(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	for _, target := range []string{"/", "/login", "/people"} {
		h := get(s, target).Header()
		require.Equal(t, "private, no-cache", h.Get("Cache-Control"), target)
		require.Equal(t, "Cookie", h.Get("Vary"), target)
	}
}

func TestBrokenTemplateIsAWholeErrorPage(t *testing.T) {
	t.Parallel()
	s, log := bare(t)
	w := get(s.Shows("people", "people", anna, []string{"no profile"}), "/people")
	require.Equal(t, 500, w.Code)
	require.Equal(t, 1, strings.Count(w.Body.String(), "<!doctype html>"))
	require.Contains(t, w.Body.String(), "Something broke")
	require.Contains(t, log.String(), "web: make the page people")
}

func TestAgo(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		before time.Duration
		want   string
	}{
		{-time.Hour, "now"},
		{59 * time.Second, "now"},
		{time.Minute, "1 min"},
		{59*time.Minute + 59*time.Second, "59 min"},
		{time.Hour, "1 h"},
		{24*time.Hour - 1, "23 h"},
		{24 * time.Hour, "1 d"},
		{7*24*time.Hour - 1, "6 d"},
		{7 * 24 * time.Hour, "3 Mar"},
		{100 * 24 * time.Hour, "30 Nov 2025"},
	} {
		require.Equal(t, test.want, web.Ago(now, now.Add(-test.before)), test.before)
	}
}

func TestTimesAreThoseOfTheClock(t *testing.T) {
	t.Parallel()
	made := idgen.Default.Time(photo(1).ID)
	s, _ := site(t, testserver.Redis(t), web.Config{Now: func() time.Time { return made.Add(3 * time.Hour) }})
	body := get(s.Shows("photo", "", nobody, post3()[0]), "/").Body.String()
	require.Contains(t, body, `<time datetime="`+made.Format(time.RFC3339)+`"`)
	require.Contains(t, body, ">3 h</time>")
}

func TestCountSetsThousandsApart(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, web.Count(n))
	}
}
