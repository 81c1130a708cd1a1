package web

import (
	"net/http"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
)

// newsShown is how many likes and follows a page of the activity is made of.
const newsShown = 60

// An activity is a part of what others did to the viewer.
type activity struct {
	store.Page[store.Notice]
	Top  bool     // nothing is above this part
	Mark idgen.ID // the viewer has seen it up to here
}

// activity shows who liked the viewer's photos and who follows.
func (s *Site) activity(v *visit) error {
	before, err := v.before()
	if err != nil {
		return err
	}
	notices, err := s.store.Activity(v.r.Context(), v.viewer.ID, before, newsShown)
	if err != nil {
		return err
	}
	data := activity{notices, before == 0, idgen.ID(v.unseen.Activity.Mark)}
	if data.Top && len(notices.Items) > 0 && v.unseen.Activity.N > 0 {
		s.store.SeenActivity(v.r.Context(), v.viewer.ID, notices.Items[0].ID)
		v.unseen.Activity.N = 0
	}
	return s.render(v, http.StatusOK, "activity", page{Title: "Activity", Tab: "activity", Data: data})
}

// Who names those of a notice: "ada, bob and 3 others".
func (p *page) Who(n store.Notice) string {
	var names []string
	for _, u := range n.Actors[:min(2, len(n.Actors))] {
		names = append(names, u.Name)
	}
	return feedcache.Phrase(names, len(n.Actors))
}
