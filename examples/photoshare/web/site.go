// Package web is photoshare's web site: pages, forms and photographs over HTTP.
//
// A photo site has to work on a slow phone and with half of its servers
// down, and must never show one person's account to another. So every page is
// made on the server, complete without a script, and a visit reads the session
// anew: a browser keeps a random number and nothing else.
//
//	browser ──► cross-origin check ──► route ──► session ──► handler ──► store
//	                  403               404      1 trip        │
//	                                    405      to Redis      ▼
//	                                                        template
//
//	cookie    32 random bytes, base64url
//	Redis     session:{SHA-256 of the cookie, hex} = user ID, for 30 days
//	          since the last visit
//
// # Guarantees
//
// A form is accepted from the site's own pages only, and leads back to a page
// of the site only. A session ends at once when the user logs out or no longer
// exists. When the sessions cannot be read, pages that ask who is there answer
// 503: nobody is taken for signed out, or for somebody else. Who reads the
// sessions in Redis cannot sign in with them.
//
// # Non-guarantees
//
// Log-ins are not counted or slowed down per address. Photos and profiles are
// public: whoever has the link sees them. Nothing but the wait for the sessions
// is bounded in time: that is the http.Server's part, and the store's.
//
// # Cost
//
// A page for a signed-in visitor takes three round trips to Redis, for the
// session and for what is new on two tabs, one for others and for images none,
// and what the store needs. Pages are made in memory before the
// first byte is sent: 13 KB for a feed of ten posts. An upload is held in
// memory, up to 10 MB.
//
// # Failure behaviour
//
// An error becomes a page that says what to do, under the status that fits. A
// page with a status of 500 or more shows the request's ID, which is also in
// the log line and in X-Request-Id, and nothing of the error. A visitor who
// has left is no error.
//
// The sizes of the square photos, 612, 306 and 150 pixels, are those of early
// Instagram: "Media Endpoints", Instagram Developer Documentation.
package web

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/examples/photoshare/store"
)

// Config is what New takes beside the store and the sessions. The zero value
// works.
type Config struct {
	// Log gets a record per visit: at level Error for an answer of 500 or
	// more, at level Debug for any other. Default: slog.Default().
	Log *slog.Logger

	// Secure says that browsers come over HTTPS. The session's cookie is then
	// sent over HTTPS only, and is called __Host-photoshare instead of
	// photoshare. Default: false.
	Secure bool

	// Now is the clock of the times on the pages. Default: time.Now.
	Now func() time.Time
}

// A Site is the web site, an http.Handler that is safe for concurrent use. Make
// it with New.
type Site struct {
	store    *store.Store
	sessions sessions
	log      *slog.Logger
	now      func() time.Time
	assets   assets
	pages    pages
	mux      *http.ServeMux
	root     http.Handler
}

// New returns the site of a store, with its sessions in rdb. It starts nothing
// and needs no Close. With ContextTimeoutEnabled in rdb's options a visitor
// waits for a silent Redis 2 seconds, without it as long as rdb's timeouts and
// retries take.
func New(s *store.Store, rdb redis.UniversalClient, cfg Config) (*Site, error) {
	if s == nil {
		return nil, errors.New("web: the store is nil")
	}
	if rdb == nil {
		return nil, errors.New("web: the client for sessions is nil")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &Site{
		store:    s,
		sessions: sessions{rdb: rdb, secure: cfg.Secure},
		log:      cfg.Log,
		now:      cfg.Now,
	}
	var err error
	if w.assets, err = readAssets(); err != nil {
		return nil, err
	}
	if w.pages, err = readPages(w.assets); err != nil {
		return nil, err
	}
	w.mux = w.routes()
	// A form of another site is refused by what browsers say about a
	// request's origin, so no form needs a hidden token.
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(w.serve(func(*visit) error { return errOrigin }))
	w.root = origin.Handler(http.HandlerFunc(w.dispatch))
	return w, nil
}

// ServeHTTP answers a request.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.root.ServeHTTP(w, r) }

func (s *Site) routes() *http.ServeMux {
	mux := http.NewServeMux()
	// Anybody may see these, and they look different when signed in.
	for pattern, h := range map[string]handler{
		"GET /{$}":      s.home,
		"GET /signup":   s.signUpForm,
		"POST /signup":  s.signUp,
		"GET /login":    s.logInForm,
		"POST /login":   s.logIn,
		"GET /p/{code}": s.photo,
		"GET /u/{name}": s.profile,
	} {
		mux.Handle(pattern, s.serve(s.visitor(h)))
	}
	for pattern, h := range map[string]handler{
		"GET /upload":             s.uploadForm,
		"POST /upload":            s.upload,
		"GET /people":             s.people,
		"GET /activity":           s.activity,
		"POST /p/{code}/like":     s.like,
		"POST /p/{code}/unlike":   s.unlike,
		"POST /u/{name}/follow":   s.follow,
		"POST /u/{name}/unfollow": s.unfollow,
	} {
		mux.Handle(pattern, s.serve(s.member(h)))
	}
	// These do not ask who is there, and work without Redis.
	for pattern, h := range map[string]handler{
		"POST /logout":       s.logOut,
		"GET /photos/{file}": s.image,
		"GET /static/{file}": s.asset,
		"GET /favicon.ico":   s.favicon,
		"GET /healthz":       s.health,
	} {
		mux.Handle(pattern, s.serve(h))
	}
	return mux
}

// dispatch is the mux, with pages of our own for what the mux refuses.
func (s *Site) dispatch(w http.ResponseWriter, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	// The refusal is a handler: only its answer tells 405 from 404.
	ref := refusal{header: http.Header{}}
	h.ServeHTTP(&ref, r)
	err := store.ErrNotFound
	if ref.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", ref.header.Get("Allow"))
		err = errMethod
	}
	s.serve(s.visitor(func(*visit) error { return err })).ServeHTTP(w, r)
}

// A refusal keeps what the mux would have answered.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) WriteHeader(status int)      { r.status = status }
func (r *refusal) Write(b []byte) (int, error) { return len(b), nil }

func (s *Site) health(v *visit) error {
	v.Header().Set("Cache-Control", "no-store")
	v.Header().Set("Content-Type", "text/plain; charset=utf-8")
	v.Write([]byte("ok\n"))
	return nil
}
