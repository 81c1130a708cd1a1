package web

import (
	"context"
	"net/http"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/idgen"
)

// A profile is a user and a part of the user's photos.
type profile struct {
	store.Profile
	Grid store.Page[store.Photo]
	Own  bool // the viewer's
	Top  bool // nothing is above this part
}

func (s *Site) profile(v *visit) error {
	before, err := v.before()
	if err != nil {
		return err
	}
	ctx := v.r.Context()
	who, err := s.store.Profile(ctx, v.viewer.ID, v.r.PathValue("name"))
	if err != nil {
		return err
	}
	grid, err := s.store.Grid(ctx, who.ID, before, gridPhotos)
	if err != nil {
		return err
	}
	p := page{Title: who.Name, Data: profile{who, grid, who.ID == v.viewer.ID, before == 0}}
	if who.ID == v.viewer.ID {
		p.Tab = "profile"
	}
	return s.render(v, http.StatusOK, "profile", p)
}

func (s *Site) follow(v *visit) error   { return s.changeFollow(v, s.store.Follow) }
func (s *Site) unfollow(v *visit) error { return s.changeFollow(v, s.store.Unfollow) }

func (s *Site) changeFollow(v *visit, change func(ctx context.Context, viewer, target idgen.ID) error) error {
	if err := v.form(); err != nil {
		return err
	}
	ctx := v.r.Context()
	target, err := s.store.UserByName(ctx, v.r.PathValue("name"))
	if err != nil {
		return err
	}
	if err := change(ctx, v.viewer.ID, target.ID); err != nil {
		return err
	}
	return v.back("/u/"+target.Name, "u-"+target.Name)
}
