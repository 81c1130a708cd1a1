package web_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/examples/photoshare/web"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/internal/localserver"
	"github.com/shardgram/shardgram/internal/testserver"
)

// cookie returns a cookie of the right form that no session has.
func cookie() *http.Cookie {
	return &http.Cookie{Name: "photoshare", Value: base64.RawURLEncoding.EncodeToString(make([]byte, 32))}
}

// signIn starts a session and returns its cookie.
func signIn(t *testing.T, s *web.Site, user idgen.ID) *http.Cookie {
	t.Helper()
	w := httptest.NewRecorder()
	require.NoError(t, s.SignIn(t.Context(), w, httptest.NewRequest(http.MethodPost, "/login", nil), user))
	cookies := w.Result().Cookies()
	require.Len(t, cookies, 1)
	return cookies[0]
}

func with(c *http.Cookie) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.AddCookie(c)
	return r
}

func keyOf(t *testing.T, c *http.Cookie) string {
	t.Helper()
	token, err := base64.RawURLEncoding.DecodeString(c.Value)
	require.NoError(t, err)
	require.Len(t, token, 32)
	sum := sha256.Sum256(token)
	return "session:" + hex.EncodeToString(sum[:])
}

func TestSessionIsANumberAndItsHash(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, _ := site(t, rdb, web.Config{})
	c := signIn(t, s, anna.ID)
	require.Equal(t, "photoshare", c.Name)
	require.Equal(t, "/", c.Path)
	require.True(t, c.HttpOnly)
	require.False(t, c.Secure)
	require.Equal(t, http.SameSiteLaxMode, c.SameSite)
	require.Empty(t, c.Domain)
	require.GreaterOrEqual(t, c.MaxAge, int(web.SessionLife.Seconds()))

	keys, err := rdb.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Equal(t, []string{keyOf(t, c)}, keys)
	require.Equal(t, anna.ID.String(), rdb.Get(t.Context(), keys[0]).Val())

	require.NotEqual(t, c.Value, signIn(t, s, anna.ID).Value)
}

func TestSessionOverHTTPS(t *testing.T) {
	t.Parallel()
	s, _ := site(t, testserver.Redis(t), web.Config{Secure: true})
	c := signIn(t, s, anna.ID)
	require.Equal(t, "__Host-photoshare", c.Name)
	require.True(t, c.Secure)
	id, err := s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Equal(t, anna.ID, id)

	c.Name = "photoshare" // as a site under the same domain could set it
	id, err = s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Zero(t, id)
}

func TestSessionLastsFromTheLastVisit(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, _ := site(t, rdb, web.Config{})
	c := signIn(t, s, anna.ID)
	key := keyOf(t, c)
	require.InDelta(t, web.SessionLife, rdb.TTL(t.Context(), key).Val(), float64(time.Minute))

	require.True(t, rdb.Expire(t.Context(), key, time.Hour).Val())
	id, err := s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Equal(t, anna.ID, id)
	require.InDelta(t, web.SessionLife, rdb.TTL(t.Context(), key).Val(), float64(time.Minute))

	require.True(t, rdb.PExpire(t.Context(), key, -1).Val())
	id, err = s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Zero(t, id)
	require.Zero(t, rdb.Exists(t.Context(), key).Val(), "looking brings none back")
}

func TestCookiesThatAreNoSessions(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, _ := site(t, rdb, web.Config{})
	good := signIn(t, s, anna.ID)
	for _, test := range []struct{ name, value string }{
		{"Empty", ""},
		{"Unknown", cookie().Value},
		{"Short", good.Value[:42]},
		{"Long", good.Value + "A"},
		{"Changed", strings.ToUpper(good.Value[:1]) + "_" + good.Value[2:]},
		{"Hash", strings.TrimPrefix(keyOf(t, good), "session:")},
		{"NoBase64", strings.Repeat("!", 43)},
	} {
		t.Run(test.name, func(t *testing.T) {
			id, err := s.SignedIn(t.Context(), with(&http.Cookie{Name: "photoshare", Value: test.value}))
			require.NoError(t, err)
			require.Zero(t, id)
		})
	}
	// A cookie of another form costs no trip: this site has no Redis.
	none, _ := bare(t)
	for _, value := range []string{"x", base64.RawURLEncoding.EncodeToString(make([]byte, 31))} {
		id, err := none.SignedIn(t.Context(), with(&http.Cookie{Name: "photoshare", Value: value}))
		require.NoError(t, err)
		require.Zero(t, id)
	}
}

func TestSessionOfNonsenseIsNobody(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, log := site(t, rdb, web.Config{})
	c := signIn(t, s, anna.ID)
	require.NoError(t, rdb.Set(t.Context(), keyOf(t, c), "12 hunter2", 0).Err())
	id, err := s.SignedIn(t.Context(), with(c))
	require.ErrorIs(t, err, web.ErrSessions)
	require.Zero(t, id)
	require.Equal(t, 503, do(s, with(c)).Code)
	require.NotContains(t, log.String(), "hunter2")
}

func TestSigningOutEndsTheSession(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, _ := site(t, rdb, web.Config{})
	c, other := signIn(t, s, anna.ID), signIn(t, s, anna.ID)

	r := httptest.NewRequest(http.MethodPost, "/logout", nil)
	r.AddCookie(c)
	w := do(s, r)
	require.Equal(t, http.StatusSeeOther, w.Code)
	require.Equal(t, "/", w.Header().Get("Location"))
	require.Len(t, w.Result().Cookies(), 1)
	require.Negative(t, w.Result().Cookies()[0].MaxAge)

	id, err := s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Zero(t, id, "the cookie is worth nothing, even kept")
	id, err = s.SignedIn(t.Context(), with(other))
	require.NoError(t, err)
	require.Equal(t, anna.ID, id, "another browser stays signed in")

	require.Equal(t, http.StatusSeeOther, post(s, "/logout", nil).Code, "out already")
}

func TestLoggingInReplacesTheSession(t *testing.T) {
	t.Parallel()
	rdb := testserver.Redis(t)
	s, _ := site(t, rdb, web.Config{})
	planted := signIn(t, s, 7)
	h := s.Enters("login", func(context.Context, string, string) (store.User, error) { return anna, nil })
	for _, test := range []struct{ next, to string }{{"", "/"}, {"/people", "/people"}, {"//evil.example", "/"}} {
		r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(url.Values{"name": {"anna"}, "next": {test.next}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.AddCookie(planted)
		w := do(h, r)
		require.Equal(t, http.StatusSeeOther, w.Code)
		require.Equal(t, test.to, w.Header().Get("Location"))
		require.Len(t, w.Result().Cookies(), 1)
		c := w.Result().Cookies()[0]
		require.NotEqual(t, planted.Value, c.Value)
		id, err := s.SignedIn(t.Context(), with(c))
		require.NoError(t, err)
		require.Equal(t, anna.ID, id)
		id, err = s.SignedIn(t.Context(), with(planted))
		require.NoError(t, err)
		require.Zero(t, id)
	}
}

func TestWithoutRedisNobodyIsTakenForAnybody(t *testing.T) {
	t.Parallel()
	server, s := ownRedis(t)
	c := signIn(t, s, anna.ID)
	require.NoError(t, server.Kill())

	for _, target := range []string{"/", "/people", "/login", "/u/anna", "/nowhere"} {
		r := httptest.NewRequest(http.MethodGet, target, nil)
		r.AddCookie(c)
		w := do(s, r)
		require.Equal(t, 503, w.Code, target)
		require.NotEmpty(t, w.Header().Get("Retry-After"))
		require.NotContains(t, w.Body.String(), `href="/login"`, "who is perhaps signed in is offered no log-in")
		require.Empty(t, w.Result().Cookies(), "the session is kept for later")
	}

	// A visitor without a session needs no Redis.
	require.Equal(t, 200, get(s, "/").Code)
	require.Equal(t, 200, get(s, "/login").Code)
	h := s.Enters("login", func(context.Context, string, string) (store.User, error) { return anna, nil })
	w := post(h, "/login", url.Values{"name": {"anna"}})
	require.Equal(t, 503, w.Code)
	require.Empty(t, w.Result().Cookies(), "no cookie for a session that is none")

	// Who wants out gets rid of the cookie at least, and learns the rest.
	r := httptest.NewRequest(http.MethodPost, "/logout", nil)
	r.AddCookie(c)
	w = do(s, r)
	require.Equal(t, 503, w.Code)
	require.Len(t, w.Result().Cookies(), 1)
	require.Negative(t, w.Result().Cookies()[0].MaxAge)
}

func TestSilentRedisIsNotWaitedForLong(t *testing.T) {
	t.Parallel()
	server, s := ownRedis(t)
	c := signIn(t, s, anna.ID)
	require.NoError(t, server.Pause())
	start := time.Now()
	require.Equal(t, 503, do(s, with(c)).Code)
	require.Less(t, time.Since(start), 10*time.Second)
	require.NoError(t, server.Resume())
	id, err := s.SignedIn(t.Context(), with(c))
	require.NoError(t, err)
	require.Equal(t, anna.ID, id)
}

// ownRedis returns a site with a Redis that the test may break.
func ownRedis(t *testing.T) (*localserver.Redis, *web.Site) {
	t.Helper()
	server, err := testserver.Host(t).Redis(t.Context(), "sessions", localserver.RedisConfig{})
	require.NoError(t, err)
	rdb := redis.NewClient(&redis.Options{
		Addr: server.Addr(), ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
		ReadTimeout: time.Minute,
	})
	t.Cleanup(func() { require.NoError(t, rdb.Close()) })
	s, _ := site(t, rdb, web.Config{})
	return server, s
}

func TestSessionsKeepTheCausesOfErrors(t *testing.T) {
	t.Parallel()
	s, _ := site(t, testserver.Redis(t), web.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.SignedIn(ctx, with(cookie()))
	require.ErrorIs(t, err, context.Canceled)
	require.True(t, errors.Is(err, web.ErrSessions))
}
