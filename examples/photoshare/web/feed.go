package web

import (
	"fmt"
	"net/http"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
)

// How much a page shows.
const (
	homePosts   = 10
	gridPhotos  = 18
	peopleShown = 30
)

// A feed is a part of the home feed.
type feed struct {
	store.Page[store.Post]
	Top bool // nothing is above this part
	New int  // photos that have come since the last look
}

// home shows what those have shared whom the viewer follows, and the front door
// to everybody else.
func (s *Site) home(v *visit) error {
	if v.viewer.ID == 0 {
		return s.render(v, http.StatusOK, "landing", page{Data: account{New: true}})
	}
	before, err := v.before()
	if err != nil {
		return err
	}
	posts, err := s.store.Home(v.r.Context(), v.viewer.ID, before, homePosts)
	if err != nil {
		return err
	}
	data := feed{Page: posts, Top: before == 0}
	if data.Top && len(posts.Items) > 0 && v.unseen.Home.N > 0 {
		s.store.SeenHome(v.r.Context(), v.viewer.ID, posts.Items[0].ID)
		if v.unseen.Home.Mark > 0 {
			data.New = v.unseen.Home.N
		}
		v.unseen.Home.N = 0
	}
	return s.render(v, http.StatusOK, "home", page{Title: "Home", Tab: "home", Data: data})
}

// before reads the cursor of a page, 0 for the top.
func (v *visit) before() (idgen.ID, error) {
	raw := v.r.URL.Query().Get("before")
	if raw == "" {
		return 0, nil
	}
	id, err := idgen.Parse(raw)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errCursor, err)
	}
	return id, nil
}

// people shows whom one could follow.
func (s *Site) people(v *visit) error {
	found, err := s.store.People(v.r.Context(), v.viewer.ID, peopleShown)
	if err != nil {
		return err
	}
	return s.render(v, http.StatusOK, "people", page{Title: "People", Tab: "people", Data: found})
}
