package main

import (
	"log/slog"

	"github.com/shardgram/shardgram/pgbounce"
)

// embed returns a pooler within this process, to a PostgreSQL on this machine.
func embed(port int) (*pgbounce.Bouncer, error) {
	return pgbounce.New(pgbounce.Config{
		Databases: map[string]pgbounce.Database{
			"*": {Hosts: []string{"127.0.0.1"}, Port: port, User: "postgres"},
		},
		Log: slog.New(slog.DiscardHandler),
	})
}
