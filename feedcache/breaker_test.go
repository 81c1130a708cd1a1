package feedcache_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/shardgram/shardgram/feedcache"
	"github.com/shardgram/shardgram/internal/testserver"
)

// What is a server's silence, and what may come from a healthy one.
func TestBreaker(t *testing.T) {
	t.Parallel()
	reply := testserver.Redis(t).Do(t.Context(), "nonsense").Err()
	require.ErrorContains(t, reply, "ERR unknown command")
	hungUp := fmt.Errorf("%w: %w", context.DeadlineExceeded, os.ErrDeadlineExceeded)
	const now, long = 0, time.Minute // ago
	for _, test := range []struct {
		name  string
		began time.Duration
		err   error
		open  bool
	}{
		{"Answer", now, nil, false},
		{"Refusal", now, reply, false},
		{"NoKey", now, redis.Nil, false},
		{"Cut", now, io.EOF, false},
		{"Reset", now, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, false},
		{"PoolIsEmpty", now, redis.ErrPoolTimeout, false},
		{"CallerLeft", long, context.Canceled, false},
		{"CallerInAHurry", now, hungUp, false},
		{"CallerWaited", long, hungUp, true},
		{"Timeout", now, &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, true},
		{"Refused", now, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var b feedcache.Breaker
			b.Note("a", time.Now().Add(-test.began), test.err, time.Hour)
			require.Equal(t, test.open, b.Open("a", time.Hour))
			require.False(t, b.Open("b", time.Hour), "another server")
		})
	}

	var b feedcache.Breaker
	silence := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	b.Note("a", time.Now(), silence, time.Nanosecond)
	require.False(t, b.Open("a", time.Hour), "the time is over: one is let through")
	require.True(t, b.Open("a", time.Hour), "and no other")
	b.Note("a", time.Now(), io.EOF, time.Hour)
	require.True(t, b.Open("a", time.Hour), "which says nothing")
	b.Note("a", time.Now(), reply, time.Hour)
	require.False(t, b.Open("a", time.Hour), "it answers")
}
