package web

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/shardgram/shardgram/idgen"
)

const (
	// sessionLife is how long a session lasts after its last visit.
	sessionLife = 30 * 24 * time.Hour

	// cookieLife is the longest that browsers allow. Redis decides when a
	// session ends; a cookie without one signs nobody in.
	cookieLife = 400 * 24 * time.Hour

	// sessionWait is how long a visitor waits for an answer of Redis.
	sessionWait = 2 * time.Second
)

// errSessions is returned when Redis does not say who is there.
var errSessions = errors.New("web: the sessions cannot be reached")

// sessions says who is signed in. Redis holds only the hash of a cookie, so a
// copy of Redis opens no session.
type sessions struct {
	rdb    redis.UniversalClient
	secure bool
}

// start signs a user in under a new cookie. A cookie from before is of no use
// afterwards: whoever planted or copied it gains nothing.
func (s *sessions) start(ctx context.Context, w http.ResponseWriter, r *http.Request, user idgen.ID) error {
	if err := s.end(ctx, w, r); err != nil {
		return err
	}
	token := make([]byte, 32)
	rand.Read(token) // never fails
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	if err := s.rdb.Set(ctx, sessionKey(token), user.String(), sessionLife).Err(); err != nil {
		return fmt.Errorf("%w: start: %w", errSessions, err)
	}
	s.setCookie(w, base64.RawURLEncoding.EncodeToString(token), int(cookieLife.Seconds()))
	return nil
}

// user returns who is signed in, 0 for nobody, and makes the session last
// longer.
func (s *sessions) user(ctx context.Context, r *http.Request) (idgen.ID, error) {
	token, ok := s.token(r)
	if !ok {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	value, err := s.rdb.GetEx(ctx, sessionKey(token), sessionLife).Result()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%w: read: %w", errSessions, err)
	}
	id, err := idgen.Parse(value)
	if err != nil {
		// The value stays out of the log.
		return 0, fmt.Errorf("%w: read: the value is no ID", errSessions)
	}
	return id, nil
}

// end signs out. The cookie goes even if Redis cannot be reached.
func (s *sessions) end(ctx context.Context, w http.ResponseWriter, r *http.Request) error {
	token, ok := s.token(r)
	if !ok {
		return nil
	}
	s.setCookie(w, "", -1)
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	if err := s.rdb.Del(ctx, sessionKey(token)).Err(); err != nil {
		return fmt.Errorf("%w: end: %w", errSessions, err)
	}
	return nil
}

// token returns the number in the cookie, if it has the form of ours.
func (s *sessions) token(r *http.Request) ([]byte, bool) {
	c, err := r.Cookie(s.cookieName())
	if err != nil {
		return nil, false
	}
	token, err := base64.RawURLEncoding.Strict().DecodeString(c.Value)
	return token, err == nil && len(token) == 32
}

// cookieName is, over HTTPS, one that browsers take only from this very host.
func (s *sessions) cookieName() string {
	if s.secure {
		return "__Host-photoshare"
	}
	return "photoshare"
}

// setCookie replaces a cookie of this answer: start ends the old session first.
func (s *sessions) setCookie(w http.ResponseWriter, value string, maxAge int) {
	w.Header().Del("Set-Cookie")
	http.SetCookie(w, &http.Cookie{
		Name: s.cookieName(), Value: value, Path: "/", MaxAge: maxAge,
		Secure: s.secure, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

func sessionKey(token []byte) string {
	sum := sha256.Sum256(token)
	return "session:" + hex.EncodeToString(sum[:])
}
