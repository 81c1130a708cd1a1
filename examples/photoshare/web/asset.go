package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/shardgram/shardgram/examples/photoshare/store"
)

//go:embed static
var static embed.FS

// immutable is for an address whose content never changes.
const immutable = "public, max-age=31536000, immutable"

// assets are the files of the pages' looks, by name.
type assets map[string]asset

type asset struct {
	body []byte
	hash string // part of the link, so that a browser may keep the file for ever
}

func readAssets() (assets, error) {
	files, err := static.ReadDir("static")
	if err != nil {
		return nil, fmt.Errorf("web: read the assets: %w", err)
	}
	a := assets{}
	for _, file := range files {
		body, err := static.ReadFile("static/" + file.Name())
		if err != nil {
			return nil, fmt.Errorf("web: read the assets: %w", err)
		}
		sum := sha256.Sum256(body)
		a[file.Name()] = asset{body, hex.EncodeToString(sum[:8])}
	}
	return a, nil
}

// link returns the address of a file in this version.
func (a assets) link(name string) (string, error) {
	if _, ok := a[name]; !ok {
		return "", fmt.Errorf("web: no asset %s", name)
	}
	return "/static/" + name + "?v=" + a[name].hash, nil
}

func (s *Site) asset(v *visit) error { return s.sendAsset(v, v.r.PathValue("file")) }

// favicon is for browsers that show an image on its own, without a page.
func (s *Site) favicon(v *visit) error { return s.sendAsset(v, "icon.svg") }

func (s *Site) sendAsset(v *visit, name string) error {
	a, ok := s.assets[name]
	if !ok {
		return store.ErrNotFound
	}
	cache := "no-cache"
	if v.r.URL.Query().Get("v") == a.hash {
		cache = immutable
	}
	v.Header().Set("Cache-Control", cache)
	v.Header().Set("ETag", `"`+a.hash+`"`)
	http.ServeContent(v, v.r, name, time.Time{}, bytes.NewReader(a.body))
	return nil
}
