package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/shardgram/shardgram/feedcache/lookaside"
	"github.com/shardgram/shardgram/idgen"
	"github.com/shardgram/shardgram/shard"
)

// SignUp makes a user: a name of 2 to 30 letters a-z, digits, '_' and '.', and a
// password of 8 to 128 characters. Errors: *InvalidError, ErrNameTaken.
func (s *Store) SignUp(ctx context.Context, name, password string) (User, error) {
	if name = fold(name); !validName(name) {
		return User{}, &InvalidError{"name", "Choose a name of 2 to 30 letters a to z, digits, dots and underscores."}
	}
	if n := utf8.RuneCountInString(password); n < 8 || n > 128 {
		return User{}, &InvalidError{"password", "Choose a password of 8 to 128 characters."}
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return User{}, fmt.Errorf("store: sign up: %w", err)
	}
	u := User{Name: name}
	err = s.shards.Key(name).QueryRow(ctx, "insert into account (name, password) values ($1, $2) returning id", name, hash).Scan(&u.ID)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.ConstraintName == "account_name_key" {
		return User{}, ErrNameTaken
	}
	if err != nil {
		return User{}, fmt.Errorf("store: sign up: %w", err)
	}
	return u, nil
}

// LogIn returns the user with a name and password. Errors: ErrWrongPassword.
func (s *Store) LogIn(ctx context.Context, name, password string) (User, error) {
	if !validName(fold(name)) {
		return User{}, ErrWrongPassword
	}
	u := User{Name: fold(name)}
	var hash string
	err := s.shards.Key(u.Name).QueryRow(ctx, "select id, password from account where name = $1", u.Name).Scan(&u.ID, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		// An unknown name costs as much time as a wrong password, so that
		// nobody can find out who has an account.
		hash = s.hasher.decoy
	} else if err != nil {
		return User{}, fmt.Errorf("store: log in: %w", err)
	}
	ok, err := s.hasher.verify(ctx, hash, password)
	if err != nil {
		return User{}, fmt.Errorf("store: log in: %w", err)
	}
	if !ok || u.ID == 0 {
		return User{}, ErrWrongPassword
	}
	return u, nil
}

// User returns a user by ID. Errors: ErrNotFound.
func (s *Store) User(ctx context.Context, id idgen.ID) (User, error) {
	u, err := s.users.Get(ctx, id)
	if err != nil {
		return User{}, notFound(err)
	}
	return u, nil
}

// UserByName returns a user by name. Errors: ErrNotFound.
func (s *Store) UserByName(ctx context.Context, name string) (User, error) {
	if !validName(fold(name)) {
		return User{}, ErrNotFound
	}
	u := User{Name: fold(name)}
	err := s.shards.Key(u.Name).QueryRow(ctx, "select id from account where name = $1", u.Name).Scan(&u.ID)
	if err != nil {
		return User{}, notFound(err)
	}
	return u, nil
}

func (s *Store) loadUsers(ctx context.Context, ids []idgen.ID) (map[idgen.ID]User, error) {
	users, err := shard.Collect(shard.Gather(ctx, s.shards, byShard(s.shards, ids, pgx.RowToStructByPos[User],
		"select id, name from account where id = any($1)")))
	return byID(users, func(u User) idgen.ID { return u.ID }), err
}

// fold makes a name of what a person types for it.
func fold(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

// notFound turns the "no such thing" of every layer below into ErrNotFound. An
// ID of a shard that does not exist was never made here.
func notFound(err error) error {
	if errors.Is(err, pgx.ErrNoRows) || errors.Is(err, lookaside.ErrNotFound) || errors.Is(err, shard.ErrNoShard) {
		return ErrNotFound
	}
	return fmt.Errorf("store: %w", err)
}

func validName(name string) bool {
	return len(name) >= 2 && len(name) <= 30 && strings.Trim(name, ".") != "" &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_.") == ""
}
