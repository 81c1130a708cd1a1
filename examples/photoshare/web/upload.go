package web

import (
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"strings"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
)

// A draft is what stands in the form to share a photo. Browsers do not show a
// chosen file again, so it has to be chosen again.
type draft struct {
	Caption        string
	Field, Problem string // the field that is wrong, and why
}

// MaxCaption is the number of characters that the field takes.
func (d draft) MaxCaption() int { return store.MaxCaption }

func (s *Site) uploadForm(v *visit) error { return s.draftForm(v, http.StatusOK, draft{}) }

func (s *Site) draftForm(v *visit, status int, d draft) error {
	return s.render(v, status, "upload", page{Title: "Share a photo", Tab: "upload", Data: d})
}

func (s *Site) upload(v *visit) error {
	jpeg, caption, err := v.upload()
	if err == nil {
		var photo store.Photo
		if photo, err = s.store.Upload(v.r.Context(), v.viewer.ID, caption, jpeg); err == nil {
			return v.redirect("/p/" + photo.ID.Short())
		}
	}
	f := explain(err)
	if f.field == "" {
		return err
	}
	return s.draftForm(v, f.status, draft{caption, f.field, f.text})
}

// upload reads the photo and the caption of the form. It returns what it has
// when it fails.
func (v *visit) upload() (jpeg []byte, caption string, err error) {
	v.r.Body = http.MaxBytesReader(v.ResponseWriter, v.r.Body, imaging.MaxBytes+formBytes)
	parts, err := v.r.MultipartReader()
	if err != nil {
		return nil, "", formError(err)
	}
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, caption, uploadError(err)
		}
		switch part.FormName() {
		case "photo":
			jpeg, err = io.ReadAll(part)
		case "caption":
			caption, err = readCaption(part)
		}
		if err != nil {
			return nil, caption, uploadError(err)
		}
	}
	if len(jpeg) == 0 {
		return nil, caption, &store.InvalidError{Field: "photo", Reason: "Choose a photo first."}
	}
	return jpeg, caption, nil
}

// uploadError is formError, but says of too large a body that it is the photo.
func uploadError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return imaging.ErrTooLarge
	}
	return formError(err)
}

// readCaption reads the caption with the ends of lines that the field counted:
// browsers send two characters for one.
func readCaption(part *multipart.Part) (string, error) {
	b, err := io.ReadAll(io.LimitReader(part, formBytes))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\r\n", "\n")), err
}
