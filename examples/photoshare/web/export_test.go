package web

import (
	"context"
	"net/http"
	"time"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
)

type (
	Account     = account
	Activity    = activity
	Draft       = draft
	Feed        = feed
	ProfilePage = profile
)

var (
	Ago       = ago
	Count     = count
	LocalPath = localPath
	PhotoFile = photoFile
)

// Fails is a handler that answers with err.
func (s *Site) Fails(err error) http.Handler {
	return s.serve(func(*visit) error { return err })
}

// Does is a handler that runs do.
func (s *Site) Does(do func(w http.ResponseWriter)) http.Handler {
	return s.serve(func(v *visit) error {
		do(v)
		return nil
	})
}

// Shows is a handler that sends a page.
func (s *Site) Shows(name, tab string, viewer store.User, data any) http.Handler {
	return s.serve(func(v *visit) error {
		v.viewer = viewer
		return s.render(v, http.StatusOK, name, page{Title: "T", Tab: tab, Data: data})
	})
}

// Pages returns the names of the templates that are pages.
func (s *Site) Pages() []string {
	var names []string
	for name := range s.pages {
		if name != "layout" && name != "icons" && name != "parts" {
			names = append(names, name)
		}
	}
	return names
}

// Enters is the handler of a form, name "signup" or "login", whose fields check
// judges.
func (s *Site) Enters(name string, check func(ctx context.Context, name, password string) (store.User, error)) http.Handler {
	return s.serve(func(v *visit) error { return s.enter(v, name, "T", check) })
}

// ReadsUpload is a handler that reads the form of a photo and hands it to got.
func (s *Site) ReadsUpload(got func(jpeg []byte, caption string)) http.Handler {
	return s.serve(func(v *visit) error {
		jpeg, caption, err := v.upload()
		got(jpeg, caption)
		return err
	})
}

func (s *Site) SignIn(ctx context.Context, w http.ResponseWriter, r *http.Request, user idgen.ID) error {
	return s.sessions.start(ctx, w, r, user)
}

func (s *Site) SignedIn(ctx context.Context, r *http.Request) (idgen.ID, error) {
	return s.sessions.user(ctx, r)
}

func (s *Site) SignOut(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	return s.sessions.end(ctx, w, r)
}

const SessionLife time.Duration = sessionLife

var (
	ErrSessions = errSessions
	ErrCursor   = errCursor
	ErrForm     = errForm
)
