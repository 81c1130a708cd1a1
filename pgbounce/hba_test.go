package pgbounce_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

var unixAddr = &net.UnixAddr{Name: "/tmp/.s.PGSQL.6432", Net: "unix"}

func tcpAddr(s string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(s), 5000))
}

func mustHBA(t testing.TB, text string) *pgbounce.HBA {
	t.Helper()
	h, err := pgbounce.ParseHBA(strings.NewReader(text))
	require.NoError(t, err)
	return h
}

func TestHBAMatch(t *testing.T) {
	t.Parallel()
	type client struct {
		database, user string
		addr           net.Addr
		tls, physical  bool
	}
	at := func(addr string) client { return client{"db", "alice", tcpAddr(addr), false, false} }
	for _, test := range []struct {
		name, rules string
		client      client
		want        string // no rule fits if empty
	}{
		{"NoRules", "# host all all all trust\n\n", at("10.0.0.1"), ""},
		{"FirstWins", "host all all all reject\nhost all all all trust", at("10.0.0.1"), "reject"},
		{"NextIfNot", "host x all all reject\nhost all all all md5", at("10.0.0.1"), "md5"},

		{"LocalIsUnix", "local all all trust", client{"db", "alice", unixAddr, false, false}, "trust"},
		{"LocalIsNotTCP", "local all all trust", at("127.0.0.1"), ""},
		{"HostIsNotUnix", "host all all all trust", client{"db", "alice", unixAddr, false, false}, ""},
		{"HostWithTLS", "host all all all trust", client{"db", "alice", tcpAddr("::1"), true, false}, "trust"},
		{"HostSSL", "hostssl all all all trust", client{"db", "alice", tcpAddr("::1"), true, false}, "trust"},
		{"HostSSLWithout", "hostssl all all all trust", at("::1"), ""},
		{"HostNoSSL", "hostnossl all all all trust", at("::1"), "trust"},
		{"HostNoSSLWith", "hostnossl all all all trust", client{"db", "alice", tcpAddr("::1"), true, false}, ""},
		{"HostGSS", "hostgssenc all all all trust", at("::1"), ""},
		{"HostNoGSS", "hostnogssenc all all all trust", at("::1"), "trust"},

		{"InPrefix", "host all all 10.1.0.0/16 trust", at("10.1.255.255"), "trust"},
		{"OutOfPrefix", "host all all 10.1.0.0/16 trust", at("10.2.0.0"), ""},
		{"HostBitsSet", "host all all 10.1.2.3/16 trust", at("10.1.9.9"), "trust"},
		{"Zero", "host all all 0.0.0.0/0 trust", at("203.0.113.9"), "trust"},
		{"ZeroIsIPv4", "host all all 0.0.0.0/0 trust", at("2001:db8::1"), ""},
		{"ZeroIPv6", "host all all ::/0 trust", at("2001:db8::1"), "trust"},
		{"ZeroIPv6IsNotIPv4", "host all all ::/0 trust", at("203.0.113.9"), ""},
		{"Mask", "host all all 10.1.0.0 255.255.0.0 trust", at("10.1.9.9"), "trust"},
		{"OutOfMask", "host all all 10.1.0.0 255.255.0.0 trust", at("10.2.9.9"), ""},
		{"OddMask", "host all all 10.1.0.0 255.255.128.0 trust", at("10.1.128.0"), ""},
		{"MaskIPv6", "host all all 2001:db8:: ffff:ffff:: trust", at("2001:db8:1::"), "trust"},
		{"OutOfMaskIPv6", "host all all 2001:db8:: ffff:ffff:: trust", at("2001:db9::"), ""},
		{"MappedClient", "host all all 10.0.0.0/8 trust", at("::ffff:10.0.0.1"), "trust"},
		{"MappedClientIsNotIPv6", "host all all ::/0 trust", at("::ffff:10.0.0.1"), ""},
		{"MappedRule", "host all all ::ffff:10.0.0.0/104 trust", at("10.0.0.1"), "trust"},
		{"OutOfMappedRule", "host all all ::ffff:10.0.0.0/104 trust", at("11.0.0.1"), ""},
		{"Zone", "host all all fe80::/10 trust", at("fe80::1%eth0"), "trust"},
		{"AllAddresses", "host all all all trust", at("fe80::1%eth0"), "trust"},

		{"Database", "host db all all trust", at("::1"), "trust"},
		{"OtherDatabase", "host dbx,d all all trust", at("::1"), ""},
		{"CaseMatters", "host DB all all trust", at("::1"), ""},
		{"Lists", `host x,db,y z,"alice" all trust`, at("::1"), "trust"},
		{"SpacedLists", "host x , db ,y z, alice all trust", at("::1"), "trust"},
		{"BothMustFit", "host db bob all trust", at("::1"), ""},
		{"SameUser", "host sameuser all all trust", client{"alice", "alice", tcpAddr("::1"), false, false}, "trust"},
		{"NotSameUser", "host sameuser all all trust", at("::1"), ""},
		{"SameUserOrName", "host sameuser,db all all trust", at("::1"), "trust"},
		{"UserNamedSameUser", "host all sameuser all trust", client{"db", "sameuser", tcpAddr("::1"), false, false}, "trust"},
		{"UserSameUserIsAName", "host all sameuser all trust", client{"alice", "alice", tcpAddr("::1"), false, false}, ""},
		{"QuotedAllIsAName", `host "all" all all trust`, at("::1"), ""},
		{"QuotedAllFits", `host "all" all all trust`, client{"all", "alice", tcpAddr("::1"), false, false}, "trust"},
		{"QuotedUserAll", `host all "all" all trust`, at("::1"), ""},
		{"QuotedInside", `host d"b" "al"ice all trust`, at("::1"), "trust"},
		{"QuotedComma", `host "d,b" all all trust`, client{"d,b", "alice", tcpAddr("::1"), false, false}, "trust"},
		{"QuotedQuote", `host "d""b" all all trust`, client{`d"b`, "alice", tcpAddr("::1"), false, false}, "trust"},
		{"QuotedHash", `host "#" all all trust # why`, client{"#", "alice", tcpAddr("::1"), false, false}, "trust"},
		{"QuotedAt", `host "@x" "+y" all trust`, client{"@x", "+y", tcpAddr("::1"), false, false}, "trust"},

		{"Replication", "host replication all all trust", client{"", "alice", tcpAddr("::1"), false, true}, "trust"},
		{"AllIsNotReplication", "host all all all trust", client{"", "alice", tcpAddr("::1"), false, true}, ""},
		{"ReplicationIsNotAll", "host replication all all trust", at("::1"), ""},
		{"DatabaseNamedReplication", "host replication all all trust", client{"replication", "alice", tcpAddr("::1"), false, false}, ""},
		{"QuotedReplication", `host "replication" all all trust`, client{"replication", "alice", tcpAddr("::1"), false, true}, ""},
		{"PhysicalIsNotSameUser", "host sameuser all all trust", client{"alice", "alice", tcpAddr("::1"), false, true}, ""},

		{"Password", "host all all all password", at("::1"), "plain"},
		{"Plain", "host all all all plain", at("::1"), "plain"},
		{"SCRAM", "host all all all scram-sha-256 # strong", at("::1"), "scram-sha-256"},
		{"Tabs", "\thost\tall\tall\tall\tmd5\t\r", at("::1"), "md5"},

		{"NoAddress", "host all all all trust\nlocal all all trust", client{"db", "alice", nil, false, false}, ""},
		{"UnknownAddress", "host all all all trust\nlocal all all trust", client{"db", "alice", &net.IPAddr{}, false, false}, ""},
		{"EmptyAddress", "host all all all trust", client{"db", "alice", &net.TCPAddr{}, false, false}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := test.client
			method, ident, ok := mustHBA(t, test.rules).Match(c.database, c.user, c.addr, c.tls, c.physical)
			require.Equal(t, test.want, method)
			require.Equal(t, test.want != "", ok)
			require.Empty(t, ident)
		})
	}
	_, _, ok := new(pgbounce.HBA).Match("db", "alice", unixAddr, true, false)
	require.False(t, ok, "the zero HBA lets nobody in")
}

func TestHBAMaps(t *testing.T) {
	t.Parallel()
	h := mustHBA(t, "local all all peer map=ops\nhostssl all all all cert \"map=the web\"\n")
	method, ident, _ := h.Match("db", "alice", unixAddr, false, false)
	require.Equal(t, []string{"peer", "ops"}, []string{method, ident})
	method, ident, _ = h.Match("db", "alice", tcpAddr("::1"), true, false)
	require.Equal(t, []string{"cert", "the web"}, []string{method, ident})

	require.True(t, h.Allows("", "alice", "alice"))
	require.False(t, h.Allows("", "alice", "bob"))
	require.False(t, h.Allows("ops", "alice", "alice"), "there is no map yet")

	require.NoError(t, h.ParseIdent(strings.NewReader(`# map system database
ops      root   all
ops      www    alice   # and
ops      www    bob
"the web" "CN of" "all"
`)))
	for _, test := range []struct {
		ident, system, user string
		want                bool
	}{
		{"ops", "root", "anyone", true},
		{"ops", "www", "alice", true},
		{"ops", "www", "bob", true},
		{"ops", "www", "carol", false},
		{"ops", "alice", "alice", false},
		{"ops", "", "", false},
		{"the web", "CN of", "all", true},
		{"the web", "CN of", "alice", false},
		{"the web", "root", "alice", false},
		{"none", "root", "root", false},
	} {
		require.Equal(t, test.want, h.Allows(test.ident, test.system, test.user), "%+v", test)
	}

	for _, line := range []string{
		"ops root", "ops root all more", "ops a,b all", "ops a b,c", "ops /^a all", "ops a +b", `ops "a b`, "ops a ,",
	} {
		err := h.ParseIdent(strings.NewReader("x y z\n" + line))
		require.ErrorContains(t, err, "pgbounce: parse ident maps: line 2: ", "%s", line)
	}
	require.True(t, h.Allows("ops", "root", "anyone"), "a broken file changes nothing")

	path := filepath.Join(t.TempDir(), "pg_ident.conf")
	require.NoError(t, os.WriteFile(path, []byte("ops you me\n"), 0o600))
	require.NoError(t, h.ReadIdent(path))
	require.True(t, h.Allows("ops", "you", "me"))
	require.False(t, h.Allows("ops", "root", "anyone"), "the old maps are gone")
	require.ErrorIs(t, h.ReadIdent(path+"x"), os.ErrNotExist)
}

// brokenHBA are lines that we refuse, and whether PostgreSQL does too.
var brokenHBA = []struct {
	name, line string
	fine       bool // to PostgreSQL
}{
	{name: "Type", line: "hosts all all all trust"},
	{name: "TypeInCapitals", line: "HOST all all all trust"},
	{name: "TwoTypes", line: "local,host all all all trust"},
	{name: "OnlyType", line: "local"},
	{name: "NoUser", line: "local all"},
	{name: "NoMethod", line: "local all all"},
	{name: "NoAddress", line: "host all all"},
	{name: "NoMask", line: "host all all 10.0.0.1"},
	{name: "MaskIsMethod", line: "host all all 10.0.0.1 trust"},
	{name: "AddressOfLocal", line: "local all all 127.0.0.1/32 trust"},
	{name: "PrefixTooLong", line: "host all all 10.0.0.0/33 trust"},
	{name: "PrefixTooLongIPv6", line: "host all all ::/129 trust"},
	{name: "PrefixNotANumber", line: "host all all 10.0.0.0/x trust"},
	{name: "ShortAddress", line: "host all all 10.0/16 trust", fine: true},
	{name: "TwoAddresses", line: "host all all ::1/128,127.0.0.1/32 trust"},
	{name: "MaskOfOtherFamily", line: "host all all 10.0.0.0 ffff:: trust"},
	{name: "HoleyMask", line: "host all all 10.0.0.0 255.0.255.0 trust", fine: true},
	{name: "HostName", line: "host all all example.org trust", fine: true},
	{name: "Domain", line: "host all all .example.org trust", fine: true},
	{name: "SameNet", line: "host all all samenet trust", fine: true},
	{name: "Method", line: "local all all magic"},
	{name: "Ident", line: "host all all all ident", fine: true},
	{name: "TwoMethods", line: "local all all trust,md5"},
	{name: "PeerOfHost", line: "host all all all peer"},
	{name: "CertOfHost", line: "host all all all cert"},
	{name: "CertOfLocal", line: "local all all cert"},
	{name: "Option", line: "local all all trust x=y"},
	{name: "OptionWithoutValue", line: "local all all peer map"},
	{name: "MapOfMD5", line: "local all all md5 map=x"},
	{name: "ClientCert", line: "hostssl all all all md5 clientcert=verify-full", fine: true},
	{name: "SameRole", line: "local samerole all trust", fine: true},
	{name: "SameGroup", line: "local all,samegroup all trust", fine: true},
	{name: "Role", line: "local all +staff trust", fine: true},
	{name: "DatabaseRole", line: "local +staff all trust", fine: true},
	{name: "RegularExpression", line: "local /^db all trust", fine: true}, // but a name to PostgreSQL 15
	{name: "Include", line: "include other.conf"},
	{name: "RemarkInside", line: "host all user#remark all trust"},
	{name: "OpenQuote", line: `local "all all trust`},
	{name: "CommaAtEnd", line: "local all all trust,", fine: true},
	{name: "CommaAtBegin", line: ",local all all trust", fine: true},
	{name: "TwoCommas", line: "local a,,b all trust", fine: true},
	{name: "FileFromNowhere", line: "local @names all trust"},
	{name: "LongLine", line: "local " + strings.Repeat("x", 1<<16) + " all trust"},
}

func TestHBABroken(t *testing.T) {
	t.Parallel()
	for _, test := range brokenHBA {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h, err := pgbounce.ParseHBA(strings.NewReader("local all all reject\n\n" + test.line + "\nlocal all all trust\n"))
			require.ErrorContains(t, err, "pgbounce: parse HBA: line 3: ")
			require.Nil(t, h, "no rule is passed over")
		})
	}
}

func TestHBAFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	write("more/names", "# of staff\n\nalice bob,\"all\"\n@deeper\n")
	write("more/deeper", "carol\n")
	absolute := write("absolute", "dave")
	hba := write("pg_hba.conf", "local all @more/names,eve trust\nlocal @"+absolute+" all md5\n")
	h, err := pgbounce.ReadHBA(hba)
	require.NoError(t, err)
	for user, want := range map[string]string{
		"alice": "trust", "bob": "trust", "all": "trust", "carol": "trust", "eve": "trust", "dave": "md5", "mallory": "",
	} {
		method, _, _ := h.Match(map[bool]string{true: "dave", false: "db"}[user == "dave"], user, unixAddr, false, false)
		require.Equal(t, want, method, user)
	}

	write("loop", "x @loop")
	broken := write("broken.conf", "local all @loop trust\n")
	_, err = pgbounce.ReadHBA(broken)
	require.ErrorContains(t, err, "pgbounce: read HBA: "+broken+": line 1: @loop: line 1: ")
	require.ErrorContains(t, err, "files name each other")

	write("role", "alice\n+staff")
	broken = write("broken.conf", "local all @role trust\n")
	_, err = pgbounce.ReadHBA(broken)
	require.ErrorContains(t, err, "line 1: @role: line 2: members of roles")

	broken = write("broken.conf", "local all @missing trust\n")
	_, err = pgbounce.ReadHBA(broken)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = pgbounce.ReadHBA(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// goodHBA is what PostgreSQL must read as we do.
var goodHBA = []string{
	"local all all trust",
	"host all all all reject",
	"hostssl sameuser,replication,b all all md5",
	"hostnossl a,\"b c\",all x,y,all 10.1.2.3/8 scram-sha-256",
	"hostnogssenc all all 10.1.0.0 255.255.128.0 password # why",
	"host\tall\tall ::1/128\tmd5",
	"host all all fe80::1:2/10 md5",
	"host all all 2001:db8:: ffff:ffff:: md5",
	"host \"q\"\"q\" a\"b c\"d 0.0.0.0/0 md5",
	"host a, b c, d 127.0.0.1/32 md5",
	"local all \"+x\",\"@y\" peer map=ops",
	"hostssl all all ::/0 cert map=web",
	"hostssl all all ::/0 cert \"map=the web\"",
	"  # nothing but a remark",
}

// rules asks PostgreSQL for its reading of pg_hba.conf.
func (g *guarded) rules(t *testing.T, text string) (rules []pgbounce.HBARule, errs map[int]string) {
	t.Helper()
	g.write(t, "pg_hba.conf", text)
	rows, err := g.admin.Query(t.Context(), `select line_number, coalesce(error, ''), coalesce(type, ''),
		coalesce(database, '{}'), coalesce(user_name, '{}'),
		coalesce(address, ''), coalesce(netmask, ''), coalesce(auth_method, ''), coalesce(options::text, '')
		from pg_hba_file_rules order by line_number`)
	require.NoError(t, err)
	defer rows.Close()
	errs = map[int]string{}
	for rows.Next() {
		var r pgbounce.HBARule
		var n int
		var problem, mask, options string
		require.NoError(t, rows.Scan(&n, &problem, &r.Type, &r.Databases, &r.Users, &r.Address, &mask, &r.Method, &options))
		if problem != "" {
			errs[n] = problem
			continue
		}
		if mask != "" {
			addr := netip.MustParseAddr(r.Address)
			ones, _ := net.IPMask(netip.MustParseAddr(mask).AsSlice()).Size()
			prefix, err := addr.Prefix(ones)
			require.NoError(t, err)
			r.Address = prefix.String()
		}
		if r.Method == "password" {
			r.Method = "plain"
		}
		slices.Sort(r.Databases)
		slices.Sort(r.Users)
		for option := range strings.SplitSeq(strings.Trim(options, `{}`), ",") {
			if name, ok := strings.CutPrefix(strings.Trim(option, `"`), "map="); ok {
				r.Ident = name
			}
		}
		rules = append(rules, r)
	}
	require.NoError(t, rows.Err())
	return rules, errs
}

func TestHBAWithPostgres(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	theirs, errs := g.rules(t, strings.Join(goodHBA, "\n"))
	require.Empty(t, errs)
	ours := mustHBA(t, strings.Join(goodHBA, "\n")).Rules()
	for i := range ours {
		slices.Sort(ours[i].Databases)
		slices.Sort(ours[i].Users)
	}
	require.Equal(t, theirs, ours)

	var surprises []string
	for _, test := range brokenHBA {
		if test.name == "FileFromNowhere" || test.name == "LongLine" {
			continue // PostgreSQL has a file to begin from, and no limit of this kind
		}
		if _, errs := g.rules(t, test.line); test.fine != (len(errs) == 0) {
			surprises = append(surprises, fmt.Sprintf("%s: %v", test.name, errs))
		}
	}
	require.Empty(t, surprises)
}
