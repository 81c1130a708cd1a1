package web

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/shardgram/shardgram/examples/photoshare/store"
	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/idgen"
)

//go:embed templates/*.html
var templates embed.FS

// pages are the templates by name: each one with the layout and the parts that
// the pages share.
type pages map[string]*template.Template

// shared are the templates that are no pages.
var shared = []string{"templates/layout.html", "templates/icons.html", "templates/parts.html"}

func readPages(a assets) (pages, error) {
	base, err := template.New("").Funcs(template.FuncMap{
		"asset":  a.link,
		"count":  count,
		"plural": plural,
		"path":   url.PathEscape,
	}).ParseFS(templates, shared...)
	if err != nil {
		return nil, fmt.Errorf("web: read the templates: %w", err)
	}
	files, err := fs.Glob(templates, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("web: read the templates: %w", err)
	}
	p := pages{}
	for _, file := range files {
		t, err := base.Clone()
		if err == nil {
			t, err = t.ParseFS(templates, file)
		}
		if err != nil {
			return nil, fmt.Errorf("web: read the template %s: %w", file, err)
		}
		p[strings.TrimSuffix(path.Base(file), ".html")] = t
	}
	return p, nil
}

// A page is what a template is given.
type page struct {
	Title  string
	Tab    string     // the tab that is lit
	Viewer store.User // ID 0 is nobody
	Unseen store.Unseen
	Here   string // the page's own address, for its buttons to lead back to
	ID     string // of the visit
	Data   any    // what the page is about

	now time.Time
}

// render sends a page. It is made in memory first, so that a template that
// fails sends no half of it.
func (s *Site) render(v *visit, status int, name string, p page) error {
	p.Viewer, p.Unseen, p.ID, p.Here, p.now = v.viewer, v.unseen, v.id, v.r.URL.RequestURI(), s.now()
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, "layout", &p); err != nil {
		return fmt.Errorf("web: make the page %s: %w", name, err)
	}
	v.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.WriteHeader(status)
	v.Write(b.Bytes()) // fails only for a visitor who has left
	return nil
}

// Card prepares the post at place i of a page for the template "post".
func (p *page) Card(i int, post store.Post) card { return card{post, i, p} }

// Face prepares a user for the template "avatar".
func (p *page) Face(u store.User) face { return face{u} }

// Row prepares a person for the template "follow".
func (p *page) Row(who store.Profile) row { return row{who, p.Here} }

// Time returns when a photo was made, as its ID says.
func (p *page) Time(id idgen.ID) time.Time { return idgen.Default.Time(id) }

// Badge writes how much is unseen on the corner of a tab.
func (p *page) Badge(u feedcache.Unseen) string {
	switch {
	case u.N == 0:
		return ""
	case u.N > 99:
		return "99+"
	}
	return strconv.Itoa(u.N)
}

// Ago returns how long ago that was, in the words of a feed.
func (p *page) Ago(id idgen.ID) string { return ago(p.now, p.Time(id)) }

// Alt describes a photo to who does not see it.
func (p *page) Alt(author string, photo store.Photo) string {
	caption := strings.Join(strings.Fields(photo.Caption), " ")
	if caption == "" {
		return "Photo by " + author
	}
	return "Photo by " + author + ": " + shorten(caption, 120)
}

// A card is a post on a page.
type card struct {
	store.Post
	place int
	Page  *page
}

// Lazy says that the post begins below the first screen.
func (c card) Lazy() bool { return c.place >= 2 }

// A row is a person with the button to follow, and the page to come back to.
type row struct {
	store.Profile
	Here string
}

// A face is the coloured circle that stands for a user.
type face struct{ u store.User }

// Letter returns the first letter or digit of the name.
func (f face) Letter() string {
	name := strings.TrimLeft(f.u.Name, "._")
	_, n := utf8.DecodeRuneInString(name)
	return strings.ToUpper(name[:n])
}

// Colour returns a number from 0 to 7, always the same for a user.
func (f face) Colour() int { return int(f.u.ID % 8) }

// ago says how long before now t was; from a week on it returns the date.
func ago(now, t time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Minute:
		return "now"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 24*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	case d < 7*24*time.Hour:
		return strconv.Itoa(int(d.Hours()/24)) + " d"
	case t.Year() == now.UTC().Year():
		return t.Format("2 Jan")
	}
	return t.Format("2 Jan 2006")
}

// count writes a number with its thousands apart.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// plural returns the word that goes with a number, as in "1 like" and "2 likes".
func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// shorten cuts s after n characters.
func shorten(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i] + "…"
		}
	}
	return s
}
