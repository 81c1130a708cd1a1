package web

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
)

var (
	errOrigin = errors.New("web: a form from another site")
	errMethod = errors.New("web: wrong method")
	errForm   = errors.New("web: the form cannot be read")
	errCursor = errors.New("web: before is no ID")
)

// statusGone is what the log says of a visitor who left; nobody receives it.
const statusGone = 499

// retryAfter is what a 503 asks browsers to wait, in seconds.
const retryAfter = 5

// A failure is an error in words for the visitor.
type failure struct {
	status int
	field  string // of a form that is shown again; "" asks for a page of its own
	title  string
	text   string
}

// explain says what an error means to the visitor. What it does not know is the
// server's fault, and none of the visitor's business.
func explain(err error) failure {
	if invalid, ok := errors.AsType[*store.InvalidError](err); ok {
		return failure{http.StatusUnprocessableEntity, invalid.Field, "That did not work", invalid.Reason}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return failure{http.StatusRequestEntityTooLarge, "", "Too much at once", "What you sent is larger than we take. Go back and send less."}
	}
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(store.ErrNotFound):
		return failure{http.StatusNotFound, "", "Nothing here", "The link may be mistyped, or the photo or person has gone."}
	case is(store.ErrNameTaken):
		return failure{http.StatusConflict, "name", "Name taken", "Somebody has this name already. Choose another one."}
	case is(store.ErrWrongPassword):
		return failure{http.StatusUnauthorized, "password", "Not logged in", "The name or the password is wrong."}
	case is(imaging.ErrNotJPEG):
		return failure{http.StatusUnsupportedMediaType, "photo", "Not a JPEG", "This file is no JPEG photo. Choose a .jpg file."}
	case is(imaging.ErrDamaged):
		return failure{http.StatusUnprocessableEntity, "photo", "Damaged photo", "This photo is damaged or incomplete. Choose another one, or export it again."}
	case is(imaging.ErrTooLarge):
		return failure{http.StatusRequestEntityTooLarge, "photo", "Photo too large", "A photo may have up to " + strconv.Itoa(imaging.MaxBytes>>20) + " MB. Choose a smaller one."}
	case is(imaging.ErrTooManyPixels):
		return failure{http.StatusUnprocessableEntity, "photo", "Photo too large", "This photo has too many pixels. Choose one with a smaller width and height."}
	case is(errCursor):
		return failure{http.StatusBadRequest, "", "No such page", "The link is not complete. Start again from the top."}
	case is(errForm):
		return failure{http.StatusBadRequest, "", "That did not arrive", "The form did not arrive in one piece. Go back and send it again."}
	case is(errOrigin):
		return failure{http.StatusForbidden, "", "Not from here", "That form came from another site, so nothing was done. Open photoshare and try it there."}
	case is(errMethod):
		return failure{http.StatusMethodNotAllowed, "", "Not that way", "This address takes no such request. Go back and use the buttons on the page."}
	case is(errSessions), is(context.DeadlineExceeded), store.Unavailable(err):
		return failure{http.StatusServiceUnavailable, "", "Back in a moment", "We cannot reach a part of photoshare right now. Nothing is lost; try again in a few seconds."}
	}
	return failure{http.StatusInternalServerError, "", "Something broke", "It is our fault, not yours. Try again; if it stays, tell us the number below."}
}

// fail answers with the page of an error.
func (s *Site) fail(v *visit, err error) {
	if v.r.Context().Err() != nil {
		if v.status == 0 {
			v.status = statusGone
		}
		return
	}
	f := explain(err)
	if v.status != 0 {
		// The answer is under way, and can only be broken off; the log shall
		// not call it a success.
		v.status = f.status
		return
	}
	if f.status == http.StatusServiceUnavailable {
		v.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	v.Header().Set("Cache-Control", "no-store")
	p := page{Title: f.title, Data: f}
	if f.Ours() && v.viewer.ID == 0 {
		p.Tab = "none" // perhaps somebody: offer no log-in
	}
	if err := s.render(v, f.status, "error", p); err != nil {
		http.Error(v, "Something broke. Number: "+v.id, http.StatusInternalServerError)
	}
}

// Title is the heading of the page.
func (f failure) Title() string { return f.title }

// Text says what to do.
func (f failure) Text() string { return f.text }

// Ours says that it is not the visitor's doing.
func (f failure) Ours() bool { return f.status >= http.StatusInternalServerError }
