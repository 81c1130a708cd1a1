package web

import (
	"bytes"
	"context"
	"net/http"
	"strings"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
)

// photo shows one photo.
func (s *Site) photo(v *visit) error {
	id, err := photoID(v.r.PathValue("code"))
	if err != nil {
		return err
	}
	post, err := s.store.Post(v.r.Context(), v.viewer.ID, id)
	if err != nil {
		return err
	}
	return s.render(v, http.StatusOK, "photo", page{Title: "Photo by " + post.Author.Name, Data: post})
}

func (s *Site) like(v *visit) error   { return s.changeLike(v, s.store.Like) }
func (s *Site) unlike(v *visit) error { return s.changeLike(v, s.store.Unlike) }

func (s *Site) changeLike(v *visit, change func(ctx context.Context, viewer, photo idgen.ID) error) error {
	if err := v.form(); err != nil {
		return err
	}
	id, err := photoID(v.r.PathValue("code"))
	if err != nil {
		return err
	}
	if err := change(v.r.Context(), v.viewer.ID, id); err != nil {
		return err
	}
	return v.back("/p/"+id.Short(), "p-"+id.Short())
}

// image sends a photo's image, as {code}_{size}.jpg. The image of an address
// never changes, so a browser asks for it once.
func (s *Site) image(v *visit) error {
	name := v.r.PathValue("file")
	id, size, err := photoFile(name)
	if err != nil {
		return err
	}
	data, err := s.store.Image(v.r.Context(), id, size)
	if err != nil {
		return err
	}
	v.Header().Set("Content-Type", "image/jpeg")
	v.Header().Set("Cache-Control", immutable)
	v.Header().Set("ETag", `"`+name+`"`)
	http.ServeContent(v, v.r, name, idgen.Default.Time(id), bytes.NewReader(data))
	return nil
}

// photoID reads the code of a photo's address. One that is no code is the
// address of nothing.
func photoID(code string) (idgen.ID, error) {
	id, err := idgen.ParseShort(code)
	if err != nil {
		return 0, store.ErrNotFound
	}
	return id, nil
}

// photoFile reads the name of an image. The code may hold a '_', too.
func photoFile(name string) (idgen.ID, imaging.Size, error) {
	base, isJPEG := strings.CutSuffix(name, ".jpg")
	cut := strings.LastIndexByte(base, '_')
	size, ok := imaging.ParseSize(base[cut+1:])
	if !isJPEG || cut < 0 || !ok {
		return 0, 0, store.ErrNotFound
	}
	id, err := photoID(base[:cut])
	return id, size, err
}
