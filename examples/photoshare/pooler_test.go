package main

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPagesGoThroughThePooler stops the pooler under more readers than there
// are servers.
func TestPagesGoThroughThePooler(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ada := s.signUp(t, "ada")
	before := s.pooler.Stats().Databases
	require.Equal(t, http.StatusOK, ada.get("/people").status)
	after := s.pooler.Stats().Databases
	for i := range s.postgres {
		require.Greater(t, after[i].Transactions, before[i].Transactions)
	}

	require.NoError(t, s.pooler.Pause(t.Context(), ""))
	t.Cleanup(func() { _ = s.pooler.Resume("") }) // else no page would end
	const readers = 2 * poolServers
	pages := make(chan error, readers)
	for range readers {
		go func() {
			res, err := http.Get(s.url + "/u/ada")
			if err == nil {
				err = res.Body.Close()
			}
			if err == nil && res.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", res.StatusCode)
			}
			pages <- err
		}()
	}
	wait := func() (n int) {
		for _, d := range s.pooler.Stats().Databases {
			n += d.ClientsWaiting
		}
		return n
	}
	require.Eventually(t, func() bool { return wait() >= readers }, 20*time.Second, 5*time.Millisecond)
	require.Empty(t, pages)
	require.NoError(t, s.pooler.Resume(""))
	for range readers {
		require.NoError(t, <-pages)
	}
	for _, d := range s.pooler.Stats().Databases {
		require.LessOrEqual(t, d.ServersActive+d.ServersIdle+d.ServersUsed, poolServers)
	}
}
