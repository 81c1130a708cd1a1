//go:build unix && !linux

package main

import "github.com/shardgram/shardgram/pgbounce"

// setSystemOptions has nothing to set here.
func setSystemOptions(func(key string, level, option, value int) error, *pgbounce.File) error {
	return nil
}
