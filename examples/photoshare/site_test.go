package main

import (
	"bytes"
	"html"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/examples/photoshare/web"
	"github.com/shardgram/shardgram/internal/testserver"
)

func TestMain(m *testing.M) {
	testserver.Main(m, testserver.NeedPostgres, testserver.NeedRedis, testserver.NeedMemcached)
}

// A site is a whole photoshare of the test's own.
type site struct {
	*system
	url string
}

func newSite(t *testing.T) *site {
	log := slog.New(slog.DiscardHandler)
	sys, err := startSystem(t.Context(), systemConfig{Fast: true, Log: log})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, sys.Close()) })
	handler, err := web.New(sys.store, sys.rdb, web.Config{Log: log})
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &site{sys, server.URL}
}

// A person is a browser without scripts: a client with cookies that reads the
// pages' HTML.
type person struct {
	*site
	t      *testing.T
	url    string
	name   string
	client *http.Client
}

// An answer is a page with where it was found, after redirects.
type answer struct {
	status int
	path   string
	body   string
}

func (s *site) visitor(t *testing.T, name string) *person {
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &person{s, t, s.url, name, &http.Client{Jar: jar, Transport: transport}}
}

func (s *site) signUp(t *testing.T, name string) *person {
	p := s.visitor(t, name)
	a := p.post("/signup", url.Values{"name": {name}, "password": {"correct horse"}})
	require.Equal(t, http.StatusOK, a.status)
	require.Equal(t, "/", a.path)
	return p
}

func (p *person) logIn() {
	a := p.post("/login", url.Values{"name": {p.name}, "password": {"correct horse"}})
	require.Equal(p.t, http.StatusOK, a.status)
	require.Equal(p.t, "/", a.path)
}

func (p *person) do(method, path, contentType string, body io.Reader) answer {
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, body)
	require.NoError(p.t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := p.client.Do(req)
	require.NoError(p.t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(p.t, err)
	return answer{res.StatusCode, res.Request.URL.Path, html.UnescapeString(string(text))}
}

func (p *person) get(path string) answer { return p.do("GET", path, "", nil) }

func (p *person) post(path string, form url.Values) answer {
	return p.do("POST", path, "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
}

func (p *person) upload(photo []byte, caption string) answer {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	require.NoError(p.t, form.WriteField("caption", caption))
	file, err := form.CreateFormFile("photo", "photo.jpg")
	require.NoError(p.t, err)
	_, err = file.Write(photo)
	require.NoError(p.t, err)
	require.NoError(p.t, form.Close())
	return p.do("POST", "/upload", form.FormDataContentType(), &body)
}

// share uploads a photo, waits until the followers have it, and returns its code.
func (p *person) share(photo []byte, caption string) string {
	a := p.upload(photo, caption)
	require.Equal(p.t, http.StatusOK, a.status, a.body)
	code, ok := strings.CutPrefix(a.path, "/p/")
	require.True(p.t, ok, a.path)
	if p.system != nil {
		p.fannedOut(p.t)
	}
	return code
}

// fannedOut waits until the photos are in all feeds.
func (s *site) fannedOut(t *testing.T) {
	for _, sh := range s.cluster.Shards()[:2] { // one on each node
		require.Eventually(t, func() bool {
			var done bool
			err := sh.QueryRow(t.Context(), "select not exists (select from jobs.river_job where state <> 'completed')").Scan(&done)
			return err == nil && done
		}, 20*time.Second, 10*time.Millisecond)
	}
}

var (
	postID = regexp.MustCompile(`<article class="post" id="p-([^"]+)"`)
	older  = regexp.MustCompile(`id="older" href="([^"]+)"`)
)

// feed walks the home feed from its top to its end, page by page.
func (p *person) feed() (pages [][]string) {
	for path := "/"; ; {
		a := p.get(path)
		require.Equal(p.t, http.StatusOK, a.status)
		var page []string
		for _, match := range postID.FindAllStringSubmatch(a.body, -1) {
			page = append(page, match[1])
		}
		pages = append(pages, page)
		next := older.FindStringSubmatch(a.body)
		if next == nil {
			return pages
		}
		path = next[1]
	}
}

func readPhoto(t *testing.T, name string) []byte {
	data, err := testdata.ReadFile("testdata/" + name + ".jpg")
	require.NoError(t, err)
	return data
}
