package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"time"

	"github.com/shardgram/shardgram/examples/photoshare/store"
)

// formBytes bounds the body of every form but the upload's.
const formBytes = 64 << 10

// A visit is one request and its response.
type visit struct {
	http.ResponseWriter
	r      *http.Request
	id     string     // for the log, and for a person who reports an error
	status int        // 0 until something is sent
	viewer store.User // ID 0 is nobody
	unseen store.Unseen
}

// A handler answers a visit, or returns why not; the error becomes a page.
type handler func(*visit) error

// serve makes an http.Handler of a handler: it gives the visit an ID, sends the
// security headers, turns an error or a panic into a page and writes the log.
func (s *Site) serve(h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		v := &visit{ResponseWriter: w, r: r, id: rand.Text()[:12]}
		header := v.Header()
		header.Set("X-Request-Id", v.id)
		header.Set("Content-Security-Policy",
			"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "same-origin")
		err := attempt(h, v)
		if err != nil {
			s.fail(v, err)
		}
		s.record(v, err, time.Since(start))
	})
}

// attempt runs a handler and turns a panic into an error.
func attempt(h handler, v *visit) (err error) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			panic(p)
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return h(v)
}

func (s *Site) record(v *visit, err error, took time.Duration) {
	level := slog.LevelDebug
	if v.status >= http.StatusInternalServerError {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("id", v.id),
		slog.String("method", v.r.Method),
		slog.String("path", v.r.URL.Path),
		slog.Int("status", v.status),
		slog.Duration("took", took),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("err", err))
	}
	// The log is written also for a visitor who has left.
	s.log.LogAttrs(context.WithoutCancel(v.r.Context()), level, "visit", attrs...)
}

// visitor finds out who visits before h runs.
func (s *Site) visitor(h handler) handler {
	return func(v *visit) error {
		// What a page shows depends on who looks.
		v.Header().Set("Cache-Control", "private, no-cache")
		v.Header().Set("Vary", "Cookie")
		ctx := v.r.Context()
		id, err := s.sessions.user(ctx, v.r)
		if err != nil {
			return err
		}
		if id == 0 {
			return h(v)
		}
		user, err := s.store.User(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			if err := s.sessions.end(ctx, v, v.r); err != nil {
				return err
			}
			return h(v)
		}
		if err != nil {
			return err
		}
		v.viewer = user
		if v.r.Method == http.MethodGet {
			// A page without these numbers is better than none.
			if v.unseen, err = s.store.Unseen(ctx, id); err != nil {
				s.log.DebugContext(ctx, "unseen", "id", v.id, "err", err)
			}
		}
		return h(v)
	}
}

// member lets in who is signed in, and sends everybody else to log in and then
// to the page they wanted, or to the one whose button they pressed.
func (s *Site) member(h handler) handler {
	return s.visitor(func(v *visit) error {
		if v.viewer.ID != 0 {
			return h(v)
		}
		next := v.r.URL.RequestURI()
		if v.r.Method == http.MethodPost {
			// A button's address is no page: /p/{code} is, without /like.
			path := v.r.URL.EscapedPath()
			next = cmp.Or(path[:strings.LastIndexByte(path, '/')], path)
		}
		return v.redirect("/login?next=" + url.QueryEscape(next))
	})
}

// form reads the fields of a form; v.r.PostFormValue returns them.
func (v *visit) form() error {
	v.r.Body = http.MaxBytesReader(v.ResponseWriter, v.r.Body, formBytes)
	if err := v.r.ParseForm(); err != nil {
		return formError(err)
	}
	return nil
}

// formError tells a body that is too large from one that is no form or did not
// arrive.
func formError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return err
	}
	return fmt.Errorf("%w: %w", errForm, err)
}

// redirect answers 303, so that loading the page again posts nothing twice.
func (v *visit) redirect(to string) error {
	http.Redirect(v, v.r, to, http.StatusSeeOther)
	return nil
}

// back redirects to the page whose button was pressed, as far as the form tells
// and it is ours, else to page. The mark is the place on it.
func (v *visit) back(page, mark string) error {
	return v.redirect(localPath(v.r.PostFormValue("back"), page) + "#" + mark)
}

// localPath returns raw if it is a path of this site, with its query and
// without its fragment, else or. A browser takes "//host" and "/\host" for
// another site; what counts is the unescaped path, as String may write it anew.
func localPath(raw, or string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil ||
		!strings.HasPrefix(u.Path, "/") || strings.HasPrefix(u.Path, "//") || strings.Contains(u.Path, `\`) {
		return or
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String()
}

// WriteHeader notes the status.
func (v *visit) WriteHeader(status int) {
	if v.status == 0 {
		v.status = status
	}
	v.ResponseWriter.WriteHeader(status)
}

// Write notes that an answer without a status is 200.
func (v *visit) Write(b []byte) (int, error) {
	if v.status == 0 {
		v.status = http.StatusOK
	}
	return v.ResponseWriter.Write(b)
}
