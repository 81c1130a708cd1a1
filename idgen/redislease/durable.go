package redislease

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// ErrNotDurable is returned, wrapped, by [Store.Claim] for a server that may
// forget a mark it has acknowledged, or hides its settings. The text says what
// to set. It is final until the server or [Config.AssumeDurable] is changed.
var ErrNotDurable = errors.New("redislease: the server may forget marks")

// check asks the server once whether it keeps what it acknowledges.
func (s *Store) check(ctx context.Context) error {
	if s.cfg.AssumeDurable || s.durable.Load() {
		return nil
	}
	server, err := s.primary(ctx)
	if err != nil {
		return err
	}
	pipe := server.Pipeline()
	persistence := pipe.Info(ctx, "persistence")
	memory := pipe.Info(ctx, "memory")
	settings := pipe.ConfigGet(ctx, "*appendfsync*")
	_, _ = pipe.Exec(ctx) // each command has its own error
	for _, err := range []error{persistence.Err(), memory.Err(), settings.Err()} {
		if hidden(err) {
			return fmt.Errorf("%w: it does not show its settings: see Config.AssumeDurable: %w", ErrNotDurable, err)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range []struct{ setting, got, want string }{
		{"appendonly", yes(infoField(persistence.Val(), "aof_enabled")), "yes"},
		{"appendfsync", settings.Val()["appendfsync"], "always"},
		{"no-appendfsync-on-rewrite", settings.Val()["no-appendfsync-on-rewrite"], "no"},
	} {
		if c.got != c.want {
			return fmt.Errorf("%w: %s is %q: want %s", ErrNotDurable, c.setting, c.got, c.want)
		}
	}
	// Our keys have no TTL, so volatile-lru and the like spare them.
	policy := infoField(memory.Val(), "maxmemory_policy")
	if policy != "noeviction" && !strings.HasPrefix(policy, "volatile-") {
		return fmt.Errorf("%w: maxmemory-policy is %q: want noeviction", ErrNotDurable, policy)
	}
	s.durable.Store(true)
	return nil
}

// hidden reports whether a server refused to tell: by an access list, or because
// the service has taken the command away.
func hidden(err error) bool {
	return err != nil && (strings.HasPrefix(err.Error(), "NOPERM ") || strings.HasPrefix(err.Error(), "ERR unknown command"))
}

// infoField finds a line "field:value" in an answer of INFO.
func infoField(text, field string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return value
		}
	}
	return ""
}

// yes turns a number of INFO into the word that redis.conf has for it.
func yes(n string) string {
	switch n {
	case "1":
		return "yes"
	case "0":
		return "no"
	}
	return n
}
