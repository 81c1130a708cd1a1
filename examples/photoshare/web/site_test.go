package web_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/examples/photoshare/web"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m, testserver.NeedRedis) }

// bare returns a site that reaches neither a store nor Redis: what is tested on
// it needs none. It also returns its log, from Debug on.
func bare(t *testing.T) (*web.Site, *bytes.Buffer) {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	require.NoError(t, rdb.Close())
	return site(t, rdb, web.Config{})
}

func site(t *testing.T, rdb *redis.Client, cfg web.Config) (*web.Site, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := web.New(&store.Store{}, rdb, cfg)
	require.NoError(t, err)
	return s, &log
}

func get(h http.Handler, target string) *httptest.ResponseRecorder {
	return do(h, httptest.NewRequest(http.MethodGet, target, nil))
}

func post(h http.Handler, target string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return do(h, r)
}

func do(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{})
	require.NoError(t, rdb.Close())
	_, err := web.New(nil, rdb, web.Config{})
	require.ErrorContains(t, err, "store")
	_, err = web.New(&store.Store{}, nil, web.Config{})
	require.ErrorContains(t, err, "sessions")
}

func TestAddressesOfNothing(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	for _, test := range []struct {
		name, method, target string
		status               int
		allow                string
	}{
		{"NoPage", "GET", "/nowhere", 404, ""},
		{"NoPageBelowAPage", "GET", "/people/x", 404, ""},
		{"PostToNoPage", "POST", "/nowhere", 404, ""},
		{"GetOfAButton", "GET", "/p/B/like", 405, "POST"},
		{"PostToAPage", "POST", "/people", 405, "GET, HEAD"},
		{"DeleteOfAPhoto", "DELETE", "/p/B", 405, "GET, HEAD"},
		{"CodeThatIsNone", "GET", "/p/!", 404, ""},
		{"CodeOfZero", "GET", "/p/A", 404, ""},
		{"ImageOfNoSize", "GET", "/photos/B_613.jpg", 404, ""},
		{"ImageThatIsNoJPEG", "GET", "/photos/B_612.png", 404, ""},
		{"ImageOfNoCode", "GET", "/photos/_612.jpg", 404, ""},
		{"ImageWithoutSize", "GET", "/photos/B.jpg", 404, ""},
		{"NoAsset", "GET", "/static/other.css", 404, ""},
		{"AssetOutside", "GET", "/static/..%2Fsite.go", 404, ""},
		{"FeedCursor", "GET", "/u/anna?before=x", 400, ""},
		{"FeedCursorOfZero", "GET", "/u/anna?before=0", 400, ""},
		{"FeedCursorTooLarge", "GET", "/u/anna?before=9223372036854775808", 400, ""},
		{"FeedCursorBelowZero", "GET", "/u/anna?before=-1", 400, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := do(s, httptest.NewRequest(test.method, test.target, nil))
			require.Equal(t, test.status, w.Code)
			require.Equal(t, test.allow, w.Header().Get("Allow"))
			require.Contains(t, w.Body.String(), "<h1>", "a page of ours")
			require.NotContains(t, w.Header().Get("Cache-Control"), "immutable")
		})
	}
}

func TestEveryAnswerHasSecurityHeaders(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	for _, target := range []string{"/", "/login", "/upload", "/nowhere", "/static/style.css", "/photos/x", "/healthz", "/u/a?before=x"} {
		h := get(s, target).Header()
		csp := h.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'self'", "img-src 'self' data:", "form-action 'self'", "frame-ancestors 'none'"} {
			require.Contains(t, csp, part, target)
		}
		require.NotContains(t, csp, "unsafe", target)
		require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"), target)
		require.Equal(t, "same-origin", h.Get("Referrer-Policy"), target)
		require.NotEmpty(t, h.Get("X-Request-Id"), target)
	}
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	for _, test := range []struct {
		name, header, value string
		status              int
	}{
		{"CrossSite", "Sec-Fetch-Site", "cross-site", 403},
		{"OtherOrigin", "Origin", "https://evil.example", 403},
		{"SameOrigin", "Sec-Fetch-Site", "same-origin", 303},
		{"OwnOrigin", "Origin", "http://example.com", 303}, // the Host of httptest
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/p/B/like", nil)
			r.Header.Set(test.header, test.value)
			w := do(s, r)
			require.Equal(t, test.status, w.Code)
			if test.status == 403 {
				require.Contains(t, w.Body.String(), "another site")
				require.NotEmpty(t, w.Header().Get("Content-Security-Policy"))
			}
		})
	}
}

func TestWhoIsNotSignedInIsSentToLogIn(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	for _, test := range []struct{ name, method, target, next string }{
		{"Page", "GET", "/people", "/people"},
		{"PageWithQuery", "GET", "/people?x=1&y=/", "/people?x=1&y=/"},
		{"Form", "POST", "/upload", "/upload"},
		{"Like", "POST", "/p/B/like", "/p/B"},
		{"Unlike", "POST", "/p/B/unlike?x=/y", "/p/B"},
		{"Follow", "POST", "/u/anna/follow", "/u/anna"},
		{"OddName", "POST", "/u/%2Fevil.example/follow", "/u/%2Fevil.example"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := do(s, httptest.NewRequest(test.method, test.target, nil))
			require.Equal(t, http.StatusSeeOther, w.Code)
			to, err := url.Parse(w.Header().Get("Location"))
			require.NoError(t, err)
			require.Equal(t, "/login", to.Path)
			require.Equal(t, test.next, to.Query().Get("next"))
			require.Contains(t, get(s, to.String()).Body.String(), `name="next" value="`+strings.ReplaceAll(test.next, "&", "&amp;")+`"`)
		})
	}
}

func TestRedirectsStayOnTheSite(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, raw, want string }{
		{"Path", "/people", "/people"},
		{"Query", "/?before=12", "/?before=12"},
		{"FragmentGoes", "/u/a#x", "/u/a"},
		{"Nothing", "", "/or"},
		{"Relative", "people", "/or"},
		{"OtherSite", "https://evil.example/", "/or"},
		{"OtherSiteWithoutScheme", "//evil.example/", "/or"},
		{"Backslash", `/\evil.example`, "/or"},
		{"TwoBackslashes", `\\evil.example`, "/or"},
		{"EscapedSlash", "/%2fevil.example/", "/or"},
		{"EscapedSlashAndSpace", "/%2fevil.example/ ", "/or"}, // written anew it would be //evil.example/%20
		{"EscapedBackslash", "/%5cevil.example", "/or"},
		{"UserOnly", "//user@/evil.example", "/or"},
		{"Tab", "/\t/evil.example", "/or"},
		{"LineEnd", "/x\r\nSet-Cookie: a=b", "/or"},
		{"Script", "javascript:alert(1)", "/or"},
		{"User", "/@evil.example", "/@evil.example"},
		{"ThreeSlashes", "///evil.example", "/or"},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, web.LocalPath(test.raw, "/or"))
		})
	}
}

func FuzzLocalPath(f *testing.F) {
	for _, seed := range []string{"/", "//a", `/\a`, "/%2f/a", "/%2f ", "//a@/", "/..//a", "/./\\a", "/a?b=//c", "/\u2028/a", "/;@a", "/a%0d%0ab"} {
		f.Add(seed)
	}
	base, err := url.Parse("https://photoshare.example/p/B")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, raw string) {
		w := httptest.NewRecorder()
		http.Redirect(w, httptest.NewRequest(http.MethodPost, "/p/B/like", nil), web.LocalPath(raw, "/")+"#p-B", http.StatusSeeOther)
		to := w.Header().Get("Location")
		// What a browser makes of an address before it reads it.
		browser := strings.NewReplacer("\t", "", "\r", "", "\n", "", `\`, "/").Replace(strings.TrimSpace(to))
		u, err := base.Parse(browser)
		require.NoError(t, err, to)
		require.Equal(t, "https://photoshare.example", u.Scheme+"://"+u.Host, to)
		require.False(t, strings.HasPrefix(browser, "//"), to)
	})
}

func TestAssetsAreKeptByTheirHash(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	link := regexp.MustCompile(`/static/style\.css\?v=[0-9a-f]{16}`).FindString(get(s, "/").Body.String())
	require.NotEmpty(t, link)
	w := get(s, link)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "text/css; charset=utf-8", w.Header().Get("Content-Type"))
	require.Contains(t, w.Header().Get("Cache-Control"), "immutable")
	require.Empty(t, w.Header().Get("Set-Cookie"))

	// An address of another version must not be kept: the file may change.
	require.Equal(t, "no-cache", get(s, "/static/style.css?v=0").Header().Get("Cache-Control"))
	require.Equal(t, "no-cache", get(s, "/static/style.css").Header().Get("Cache-Control"))

	r := httptest.NewRequest(http.MethodGet, "/static/style.css", nil)
	r.Header.Set("If-None-Match", w.Header().Get("ETag"))
	require.Equal(t, http.StatusNotModified, do(s, r).Code)

	w = get(s, "/favicon.ico")
	require.Equal(t, 200, w.Code)
	require.Equal(t, "image/svg+xml", w.Header().Get("Content-Type"))
}

func TestHealthAsksNobody(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	r := httptest.NewRequest(http.MethodGet, "/healthz", nil)
	r.AddCookie(cookie())
	w := do(s, r)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "ok\n", w.Body.String())
}

func TestPhotoFileReadsOnlyWhatPagesLinkTo(t *testing.T) {
	t.Parallel()
	id, size, err := web.PhotoFile("B_-_306.jpg")
	require.NoError(t, err)
	require.Equal(t, "B_-", id.Short())
	require.EqualValues(t, 306, size)
	for _, name := range []string{"", "_", "306.jpg", ".jpg", "_306.jpg", "B_306", "B_0306.jpg", "B_+306.jpg", "B306.jpg", "B_306.jpg.jpg", "AB_306.jpg"} {
		_, _, err := web.PhotoFile(name)
		require.ErrorIs(t, err, store.ErrNotFound, name)
	}
}

// TestAssetsReadNoBody sends a form along, which nobody asked for.
func TestAssetsReadNoBody(t *testing.T) {
	t.Parallel()
	s, _ := bare(t)
	body := strings.NewReader("--x\r\nContent-Disposition: form-data; name=\"v\"\r\n\r\n1\r\n--x--\r\n")
	size := body.Len()
	r := httptest.NewRequest("GET", "/static/icon.svg", body)
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
	require.Equal(t, size, body.Len())
}
