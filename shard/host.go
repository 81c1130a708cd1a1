package shard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A HostStatus is how one host of a node does.
type HostStatus struct {
	Node     string
	Host     string // address and port
	Primary  bool
	Timeline uint32
	LSN      uint64        // end of the log that it has written, or replayed
	Lag      time.Duration // of a replica: age of the last transaction that it has replayed, 0 when it has all
	LagBytes int64         // and what of the primary's log it has not
	Took     time.Duration // for its answer
	Err      error         // why it did not answer; then all but Node and Host is zero
}

// Hosts asks the hosts of all nodes how they do, all at the same time, in the
// order of the catalog.
func (c *Cluster) Hosts(ctx context.Context) []HostStatus {
	nodes := c.view.Load().nodes
	lists := make([][]HostStatus, len(nodes))
	var asking sync.WaitGroup
	for i, n := range nodes {
		asking.Go(func() {
			list := make([]status, len(n.members))
			var round sync.WaitGroup
			for i, m := range n.members {
				round.Go(func() { list[i] = m.ask(ctx) })
			}
			round.Wait()
			lists[i] = n.hosts(list)
		})
	}
	asking.Wait()
	return slices.Concat(lists...)
}

func (n *node) hosts(list []status) []HostStatus {
	var end uint64
	for _, st := range list {
		if st.err == nil && st.primary {
			end = max(end, st.lsn)
		}
	}
	hosts := make([]HostStatus, len(list))
	for i, st := range list {
		h := HostStatus{
			Node: n.Name, Host: n.members[i].addr, Primary: st.primary,
			Timeline: st.timeline, LSN: st.lsn, Took: st.took, Err: st.err,
		}
		if st.err == nil && !st.primary && end > st.lsn {
			h.Lag, h.LagBytes = st.replayed, int64(end-st.lsn)
		}
		hosts[i] = h
	}
	return hosts
}

// member is a host of a node, in whichever role.
type member struct {
	addr   string
	cfg    *pgx.ConnConfig
	before func(context.Context, *pgx.ConnConfig) error
	pool   *pgxpool.Pool // nil if the node has no other host
	status atomic.Pointer[status]

	asking sync.Mutex // held while conn is in use
	conn   *pgx.Conn  // for questions, as the pool may have none to spare
	closed bool
}

// status is what a host has said last.
type status struct {
	primary  bool
	timeline uint32
	lsn      uint64
	replayed time.Duration // since the last replayed transaction
	took     time.Duration
	err      error

	// fresh is a time of which a replica is known to have all that the primary
	// had then. It comes from the two logs, not from the hosts' clocks.
	fresh time.Time

	asked time.Time
}

var errNotAsked = errors.New("not asked yet")

const statusSQL = `select pg_catalog.pg_is_in_recovery(),
	coalesce(case when pg_catalog.pg_is_in_recovery()
		then (select received_tli from pg_catalog.pg_stat_wal_receiver)
		else ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int end,
		(select timeline_id from pg_catalog.pg_control_checkpoint())),
	coalesce(case when pg_catalog.pg_is_in_recovery()
		then pg_catalog.pg_last_wal_replay_lsn()
		else pg_catalog.pg_current_wal_insert_lsn() end, '0/0') - '0/0'::pg_lsn,
	coalesce(extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()), 0)::float8`

// ask asks the host.
func (m *member) ask(ctx context.Context) (st status) {
	m.asking.Lock()
	defer m.asking.Unlock()
	if m.closed {
		return status{err: ErrClosed}
	}
	if m.conn == nil || m.conn.IsClosed() {
		cfg := m.cfg.Copy()
		if err := m.before(ctx, cfg); err != nil {
			return status{err: err}
		}
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err != nil {
			return status{err: err}
		}
		m.conn = conn
	}
	st.asked = time.Now()
	var replayed float64
	st.err = m.conn.QueryRow(ctx, statusSQL).Scan(&st.primary, &st.timeline, &st.lsn, &replayed)
	if st.err != nil {
		m.hangUp()
		return status{err: st.err}
	}
	st.primary = !st.primary // it was asked whether it is in recovery
	st.replayed = time.Duration(replayed * float64(time.Second))
	st.took = time.Since(st.asked)
	return st
}

// close closes the connections to the host, and waits for those in use.
func (m *member) close() {
	m.asking.Lock()
	m.hangUp()
	m.closed = true
	m.asking.Unlock()
	if m.pool != nil {
		m.pool.Close()
	}
}

func (m *member) hangUp() {
	if m.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = m.conn.Close(ctx)
	m.conn = nil
}

// fail keeps reads away from a replica until it answers again.
func (m *member) fail(err error) { m.status.Store(&status{err: err}) }

// sample says how long the primary's log was at a time.
type sample struct {
	at  time.Time
	lsn uint64
}

// watch asks the hosts of a node again and again until ctx ends.
func (n *node) watch(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var samples []sample // the latest last
	for ctx.Err() == nil {
		samples = n.round(ctx, every, samples)
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

// round asks every host once, the last known primary first: what a replica has
// when it is asked after that is compared with how far the primary was.
func (n *node) round(ctx context.Context, every time.Duration, samples []sample) []sample {
	ctx, cancel := context.WithTimeout(ctx, max(every, time.Second))
	defer cancel()
	list := make([]status, len(n.members))
	was := slices.IndexFunc(n.members, func(m *member) bool { return m.status.Load().primary })
	if was >= 0 {
		// It must not take the time of the others if it hangs.
		first, cancel := context.WithTimeout(ctx, max(every, time.Second)/3)
		list[was] = n.members[was].ask(first)
		cancel()
	}
	var round sync.WaitGroup
	for i, m := range n.members {
		if i != was {
			round.Go(func() { list[i] = m.ask(ctx) })
		}
	}
	round.Wait()
	for _, st := range list {
		switch {
		case st.err != nil || !st.primary || st.timeline < n.timeline:
			// An old primary that has come back says nothing about the new one.
			continue
		case st.timeline > n.timeline:
			n.timeline, samples = st.timeline, nil
		}
		samples = append(samples, sample{st.asked, st.lsn})
	}
	for i, m := range n.members {
		st := list[i]
		if st.timeline >= n.timeline {
			// The positions of an older timeline are those of another log.
			st.fresh = freshAt(samples, st.lsn)
		}
		if old := m.status.Load(); old.fresh.After(st.fresh) && st.err == nil && !st.primary && st.lsn >= old.lsn {
			st.fresh = old.fresh // what it had it has
		}
		m.status.Store(&st)
	}
	return samples[max(0, len(samples)-64):]
}

// freshAt returns the latest time at which the primary's log was no longer than
// lsn.
func freshAt(samples []sample, lsn uint64) (at time.Time) {
	for _, s := range samples {
		if s.lsn <= lsn && s.at.After(at) {
			at = s.at
		}
	}
	return at
}

// membersOf returns the hosts of a DSN. They get pools if there are several.
func (c *Cluster) membersOf(cfg *pgxpool.Config) ([]*member, error) {
	hosts := hostsOf(cfg.ConnConfig)
	var members []*member
	for _, h := range hosts {
		one := cfg.Copy()
		conn := one.ConnConfig
		conn.ValidateConnect = nil
		all := append([]*pgconn.FallbackConfig{{Host: conn.Host, Port: conn.Port, TLSConfig: conn.TLSConfig}}, conn.Fallbacks...)
		all = slices.DeleteFunc(all, func(f *pgconn.FallbackConfig) bool { return f.Host != h.name || f.Port != h.port })
		conn.Host, conn.Port, conn.TLSConfig, conn.Fallbacks = h.name, h.port, all[0].TLSConfig, all[1:]
		m := &member{addr: h.String(), cfg: conn, before: cfg.BeforeConnect}
		m.status.Store(&status{err: errNotAsked})
		if len(hosts) > 1 {
			pool, err := pgxpool.NewWithConfig(c.run, one)
			if err != nil {
				return nil, fmt.Errorf("host %s: %w", m.addr, err)
			}
			m.pool = pool
		}
		members = append(members, m)
	}
	return members, nil
}

// host is one of a DSN's.
type host struct {
	name string
	port uint16
}

func (h host) String() string {
	if h.name != "" && h.name[0] == '/' { // the folder of a socket
		return h.name
	}
	return net.JoinHostPort(h.name, strconv.Itoa(int(h.port)))
}

// hostsOf returns the hosts of a DSN, in its order.
func hostsOf(cfg *pgx.ConnConfig) []host {
	hosts := []host{{cfg.Host, cfg.Port}}
	for _, f := range cfg.Fallbacks { // each host comes twice if TLS is optional
		if h := (host{f.Host, f.Port}); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}
