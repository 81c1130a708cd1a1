// Package pgbounce is a connection pooler for PostgreSQL that speaks its wire
// protocol: a library to embed, and in cmd/pgbounce a daemon that reads
// PgBouncer's configuration.
//
// # Problem
//
// A connection to PostgreSQL is a process of several megabytes, and some dozens
// of them at work are as many as a machine can use. Programs have thousands:
// every worker of every web server keeps its own. PgBouncer, which Instagram put
// between Django and PostgreSQL, lets them share a few. It is one thread and a
// program of its own; this package uses all cores, and runs inside a Go program
// or beside it.
//
// # Scheme
//
//	clients                  pools, one per (database, user)        servers
//	psql ────────┐           ┌──────────────────────────────┐
//	node ── TCP ─┤  loop 1   │ idle: the last used first    ├──── PostgreSQL
//	java ── TLS ─┤  ┌─────┐  │ waiting: the first come      ├────     │
//	  …          ├──┤epoll├──┤          first               ├──── 20 at most
//	pgxpool ─────┘  └─────┘  └──────────────────────────────┘
//	 in memory       loop 2 …
//
//	client    ─Q──────────────────Z─        a link: from the first message that
//	            │ link            │         needs a server to the Z that ends the
//	server    ─Q──────────────────Z─        transaction, with nothing outstanding
//
// A loop is one thread with epoll. Clients stay on a loop, and a server is
// brought to that of its client, so that what is linked is never locked. The
// first loop serves all until it is busy; then the next one starts. Messages are
// passed on as they lie in the buffer that was read, one write for each read:
// headers are looked at, and the bodies of the few that name a statement, begin
// a query, or report an end.
//
// A server keeps a queue of what it has been sent and has not answered. It is
// given back when it is ready, not in a transaction, and the queue is empty:
// also when a client sends several transactions without waiting. The next server
// goes to the client that has waited for longest.
//
// # What each mode allows
//
//	                               Session   Transaction       Statement
//	a server is held               until it  until its         for one
//	                               leaves    transaction ends  statement
//	transactions of several        yes       yes               FATAL
//	  statements
//	pipelines, COPY, cursors,      yes       yes               yes
//	  function calls, cancel
//	prepared statements of the     yes       yes, renamed      yes, renamed
//	  protocol
//	PREPARE, DEALLOCATE in SQL     yes       in a transaction  no
//	SET of a tracked parameter     yes       yes, kept per     yes, kept per
//	                                         client            client
//	SET of any other               yes       SET LOCAL only    no
//	LISTEN, session advisory       yes       as Config.Pins    as Config.Pins
//	  locks, temporary tables,               says              says
//	  cursors WITH HOLD
//	replication connections        yes       as in Session     as in Session
//
// Tracked are client_encoding, DateStyle, TimeZone, IntervalStyle,
// standard_conforming_strings, application_name and Config.TrackParameters.
//
// # Guarantees
//
// What a server says reaches the client that asked, and nobody else. A cancel
// request meets the query that it is about or none, and takes a client that
// waits out of the queue. A client that vanishes in the middle of a query costs
// a cancel and a rollback, not a server. What a client sets of the tracked
// parameters it finds again in its next transaction, and no other client does.
// A prepared statement is there on whichever server the next transaction gets.
// Clients in memory and on sockets share the same pools and limits. No message,
// however long, is kept as a whole, except a Parse, which may have 1 MB to
// outlive its transaction.
//
// # Non-guarantees
//
// SET pgbounce.shard and pgbounce.read_only count alone in their query, as plain
// SQL: PostgreSQL takes them elsewhere, such as in set_config, without effect.
//
// In transaction mode a server's session is shared: what SQL leaves there beside
// the tracked parameters, such as a SET of another one, may be met by the next
// client. SQL's own effects are found by words in its text, so that a function
// that locks for the session is not noticed. A statement is prepared under the
// search_path and role of the moment, as PostgreSQL does it, and PostgreSQL
// prepares it anew when they change.
//
// # Cost
//
// A link costs no round trip, one to PostgreSQL if the parameters of client and
// server differ, and one if the server was idle for longer than
// Config.ServerCheckDelay. Measured figures beside PgBouncer's, with the machine
// they were taken on, are in bench/README.md.
//
// # Failure
//
// A client whose server is lost is told so with a FATAL error, code 08P01, and
// disconnected; those that wait keep waiting, up to Config.QueryWaitTimeout.
// Whether what was under way is committed is then unknown, as with a connection
// of its own. While PostgreSQL refuses connections, one is tried each
// Config.ServerLoginRetry. A panic in one connection, which would be a mistake
// of this package, ends that connection and is logged.
//
// # Security
//
// Clients in this process are not asked for a password. All others log in as
// Config.Auth says; names that do not exist look like those that do. With SCRAM,
// neither side's password need be known: the key that the login shows opens the
// server, if PostgreSQL has the same secret.
//
// # Source
//
// PgBouncer, by Marko Kreen and others, https://www.pgbouncer.org; Instagram
// Engineering, "What Powers Instagram: Hundreds of Instances, Dozens of
// Technologies", 2011. The protocol is chapter "Frontend/Backend Protocol" of
// PostgreSQL's documentation.
package pgbounce
