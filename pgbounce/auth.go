package pgbounce

import (
	"fmt"
	"slices"
)

// Auth says who may log in, and how.
type Auth struct {
	// Type is "trust", "any", "plain", "md5", "scram-sha-256", "cert" or
	// "hba", as PgBouncer's auth_type. With "md5", a user whose secret is a
	// SCRAM one logs in by SCRAM. "any" takes any name, and servers are logged
	// in to by the User of their Database.
	// Default: "trust", of known and unknown users.
	Type string

	// Secrets are what users log in with: a password, "md5" and 32 hex digits,
	// or "SCRAM-SHA-256$…", as pg_authid has them.
	Secrets map[string]string

	// Query, run as User in Database (default: the one the client named), asks
	// PostgreSQL for who is not in Secrets: it has one parameter, the name, and
	// returns name and secret.
	// Default, if User is set: one from pg_catalog.pg_authid that honours VALID
	// UNTIL.
	Query    string
	User     string
	Database string

	// HBA are the rules of type "hba".
	HBA *HBA
}

var authTypes = []string{"", "trust", "any", "plain", "md5", "scram-sha-256", "cert", "hba"}

func (a *Auth) check() error {
	if !slices.Contains(authTypes, a.Type) {
		return fmt.Errorf("pgbounce: Config.Auth.Type is %q: want one of %q", a.Type, authTypes[1:])
	}
	if a.Type == "hba" && a.HBA == nil {
		return fmt.Errorf("pgbounce: Config.Auth.Type is hba: want Config.Auth.HBA")
	}
	return nil
}
