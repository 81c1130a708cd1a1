package pgbounce_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shardgram/shardgram/pgbounce"
	"github.com/stretchr/testify/require"
)

const (
	mechanism     = "SCRAM-SHA-256"
	mechanismPlus = "SCRAM-SHA-256-PLUS"
)

// An exchange is a login between our two halves. The tap sees each of the four
// messages, numbered from 0, and returns what arrives.
type exchange struct {
	keys          pgbounce.SCRAMKeys
	secret        *pgbounce.SCRAMSecret
	clientBinding []byte
	serverBinding []byte
	tap           func(n int, msg []byte) []byte
}

// run returns the key that the server learned.
func (x exchange) run() (clientKey []byte, err error) {
	tap := x.tap
	if tap == nil {
		tap = func(_ int, msg []byte) []byte { return msg }
	}
	s := pgbounce.NewSCRAMServer(x.secret, x.serverBinding)
	c, err := pgbounce.NewSCRAMClient(x.keys, s.Mechanisms(), x.clientBinding)
	if err != nil {
		return nil, err
	}
	serverFirst, err := s.First(c.Mechanism(), tap(0, c.First()))
	if err != nil {
		return nil, fmt.Errorf("server, first: %w", err)
	}
	clientFinal, err := c.Final(tap(1, serverFirst))
	if err != nil {
		return nil, fmt.Errorf("client, final: %w", err)
	}
	serverFinal, clientKey, err := s.Final(tap(2, clientFinal))
	if err != nil {
		return nil, fmt.Errorf("server, final: %w", err)
	}
	if c.Verified() {
		return nil, errors.New("verified before the server's last message")
	}
	err = c.Verify(tap(3, serverFinal))
	if c.Verified() != (err == nil) {
		return nil, fmt.Errorf("verified is %t after: %v", c.Verified(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("client, verify: %w", err)
	}
	return clientKey, nil
}

func TestSCRAMHalves(t *testing.T) {
	t.Parallel()
	secret := pgbounce.NewSCRAMSecret("hunter2", 2)
	certificate := []byte("a certificate's hash")
	for _, test := range []struct {
		name           string
		client, server []byte
	}{
		{"WithoutTLS", nil, nil},
		{"OnlyServerBinds", nil, certificate},
		{"OnlyClientBinds", certificate, nil},
		{"BothBind", certificate, certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := exchange{
				keys: pgbounce.Password("hunter2"), secret: secret,
				clientBinding: test.client, serverBinding: test.server,
			}
			key, err := x.run()
			require.NoError(t, err)

			x.keys = pgbounce.Key(key, secret)
			again, err := x.run()
			require.NoError(t, err, "the key alone logs in")
			require.Equal(t, key, again)
		})
	}
}

func TestSCRAMServerVector(t *testing.T) {
	t.Parallel()
	s := pgbounce.NewSCRAMServer(mustSCRAM(t, pencil), nil)
	s.SetNonce("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
	first, err := s.First(mechanism, []byte("n,,n=user,r=rOprNGfwEbeRWgbNEkqO"))
	require.NoError(t, err)
	require.Equal(t, "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", string(first))
	final, _, err := s.Final([]byte("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0," +
		"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	require.NoError(t, err)
	require.Equal(t, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", string(final))
	require.True(t, mustSecret(t, pencil).VerifyPlain("user", "pencil"))
}

func TestSCRAMRefusesTheWrong(t *testing.T) {
	t.Parallel()
	alice := pgbounce.NewSCRAMSecret("hunter2", 2)
	bob := pgbounce.NewSCRAMSecret("hunter2", 2) // the same password, salted anew
	key, err := exchange{keys: pgbounce.Password("hunter2"), secret: alice}.run()
	require.NoError(t, err)
	for _, test := range []struct {
		name string
		exchange
		want error
	}{
		{"Password", exchange{keys: pgbounce.Password("hunter3"), secret: alice}, pgbounce.ErrSCRAMProof},
		{"EmptyPassword", exchange{keys: pgbounce.Password(""), secret: alice}, pgbounce.ErrSCRAMProof},
		{"SecretAsPassword", exchange{keys: pgbounce.Password(alice.String()), secret: alice}, pgbounce.ErrSCRAMProof},
		{"Key", exchange{keys: pgbounce.Key(make([]byte, 32), alice), secret: alice}, pgbounce.ErrSCRAMProof},
		{"SecretOfAnother", exchange{keys: pgbounce.Key(key, alice), secret: bob}, pgbounce.ErrSCRAMSecretsDiffer},
		{
			"KeyOfAnother",
			exchange{keys: pgbounce.Key(key, bob), secret: bob},
			pgbounce.ErrSCRAMProof,
		},
		{
			"Iterations",
			exchange{keys: pgbounce.Key(key, alice), secret: mustSCRAM(t, strings.Replace(alice.String(), "$2:", "$3:", 1))},
			pgbounce.ErrSCRAMSecretsDiffer,
		},
		{
			"Nobody",
			exchange{keys: pgbounce.Password("hunter2"), secret: pgbounce.MockSCRAMSecret("nobody", []byte("key"))},
			pgbounce.ErrSCRAMProof,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			key, err := test.run()
			require.ErrorIs(t, err, test.want)
			require.Nil(t, key)
		})
	}
}

// TestSCRAMMockNeverVerifies uses what an attacker who read this code might:
// the key whose hash a mock would have to store.
func TestSCRAMMockNeverVerifies(t *testing.T) {
	t.Parallel()
	s := pgbounce.NewSCRAMSecret("hunter2", 2)
	key, err := exchange{keys: pgbounce.Password("hunter2"), secret: s}.run()
	require.NoError(t, err)
	_, err = exchange{keys: pgbounce.Key(key, s), secret: s.AsMock()}.run()
	require.ErrorIs(t, err, pgbounce.ErrSCRAMProof)
}

func TestSCRAMForLooksAlike(t *testing.T) {
	t.Parallel()
	key := []byte("a key of this process")
	nobody := mustSecret(t, "").SCRAMFor("name", key)
	plain := mustSecret(t, "hunter2").SCRAMFor("name", key)
	md5 := mustSecret(t, pgbounce.MD5Secret("name", "hunter2")).SCRAMFor("name", key)
	for _, s := range []*pgbounce.SCRAMSecret{nobody, plain, md5} {
		require.Equal(t, nobody.Salt(), s.Salt())
		require.Len(t, s.Salt(), len(pgbounce.NewSCRAMSecret("x", 1).Salt()))
		require.Equal(t, 4096, s.Iterations())
	}
	require.Equal(t, nobody.Salt(), pgbounce.MockSCRAMSecret("name", key).Salt(), "the same at each login")
	require.NotEqual(t, nobody.Salt(), pgbounce.MockSCRAMSecret("another", key).Salt())
	require.NotEqual(t, nobody.Salt(), pgbounce.MockSCRAMSecret("name", []byte("another key")).Salt())
	require.Equal(t, pencil, mustSecret(t, pencil).SCRAMFor("name", key).String())

	for _, test := range []struct {
		name   string
		secret *pgbounce.SCRAMSecret
		want   error
	}{
		{"Plain", plain, nil},
		{"MD5", md5, pgbounce.ErrSCRAMProof},
		{"Nobody", nobody, pgbounce.ErrSCRAMProof},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := exchange{keys: pgbounce.Password("hunter2"), secret: test.secret}.run()
			require.ErrorIs(t, err, test.want)
		})
	}
}

func TestSCRAMReplay(t *testing.T) {
	t.Parallel()
	secret := pgbounce.NewSCRAMSecret("hunter2", 2)
	var first, final, serverFinal []byte
	_, err := exchange{
		keys: pgbounce.Password("hunter2"), secret: secret,
		tap: func(n int, msg []byte) []byte {
			switch n {
			case 0:
				first = msg
			case 2:
				final = msg
			case 3:
				serverFinal = msg
			}
			return msg
		},
	}.run()
	require.NoError(t, err)

	s := pgbounce.NewSCRAMServer(secret, nil)
	_, err = s.First(mechanism, first)
	require.NoError(t, err)
	_, _, err = s.Final(final)
	require.ErrorContains(t, err, "nonce")

	_, err = exchange{
		keys: pgbounce.Password("hunter2"), secret: secret,
		tap: func(n int, msg []byte) []byte {
			if n == 3 {
				return serverFinal
			}
			return msg
		},
	}.run()
	require.ErrorIs(t, err, pgbounce.ErrSCRAMSignature)
}

// TestSCRAMTampered changes every bit of every message, and cuts each message
// everywhere. No login may succeed at both ends.
func TestSCRAMTampered(t *testing.T) {
	t.Parallel()
	for name, binding := range map[string][]byte{"WithoutTLS": nil, "Bound": []byte("a certificate's hash")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			secret := pgbounce.NewSCRAMSecret("hunter2", 1)
			var lengths [4]int
			x := exchange{
				keys: pgbounce.Password("hunter2"), secret: secret,
				clientBinding: binding, serverBinding: binding,
				tap: func(n int, msg []byte) []byte { lengths[n] = len(msg); return msg },
			}
			_, err := x.run()
			require.NoError(t, err)
			for n, length := range lengths {
				for i := range length {
					for bit := range 8 {
						x.tap = func(m int, msg []byte) []byte {
							if m == n {
								msg = bytes.Clone(msg)
								msg[i] ^= 1 << bit
							}
							return msg
						}
						_, err := x.run()
						require.Error(t, err, "message %d, byte %d, bit %d", n, i, bit)
					}
					x.tap = func(m int, msg []byte) []byte {
						if m == n {
							return msg[:i]
						}
						return msg
					}
					_, err := x.run()
					require.Error(t, err, "message %d cut to %d", n, i)
				}
			}
		})
	}
}

func TestSCRAMDowngrade(t *testing.T) {
	t.Parallel()
	secret := pgbounce.NewSCRAMSecret("hunter2", 1)
	binding, other := []byte("a certificate's hash"), []byte("another's")

	_, err := exchange{
		keys: pgbounce.Password("hunter2"), secret: secret, clientBinding: other, serverBinding: binding,
	}.run()
	require.ErrorContains(t, err, "server, final: wrong SCRAM channel binding", "somebody with a certificate of his own")

	c, err := pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), []string{mechanism}, binding)
	require.NoError(t, err)
	require.Equal(t, mechanism, c.Mechanism())
	_, err = pgbounce.NewSCRAMServer(secret, binding).First(c.Mechanism(), c.First())
	require.ErrorContains(t, err, "was not offered", "somebody who took the offer away")

	_, err = pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), []string{mechanismPlus}, nil)
	require.Error(t, err)
	_, err = pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), []string{"PLAIN"}, binding)
	require.Error(t, err)
}

func TestSCRAMServerMalformed(t *testing.T) {
	t.Parallel()
	secret := pgbounce.NewSCRAMSecret("hunter2", 1)
	binding := []byte("a certificate's hash")
	longest := strings.Repeat("x", pgbounce.SCRAMMaxNonce)
	for _, test := range []struct {
		name, mechanism, msg string
		binding              []byte
		ok                   bool
	}{
		{name: "Good", mechanism: mechanism, msg: "n,,n=,r=x", ok: true},
		{name: "NameIsIgnored", mechanism: mechanism, msg: "n,,n=a=2Cb,r=x", ok: true},
		{name: "Extension", mechanism: mechanism, msg: "n,,n=,r=x,a=b,c=d", ok: true},
		{name: "LongestNonce", mechanism: mechanism, msg: "n,,n=,r=" + longest, ok: true},
		{name: "ClientCouldBind", mechanism: mechanism, msg: "y,,n=,r=x", ok: true},
		{name: "Bound", mechanism: mechanismPlus, msg: "p=tls-server-end-point,,n=,r=x", binding: binding, ok: true},
		{name: "NotBound", mechanism: mechanism, msg: "n,,n=,r=x", binding: binding, ok: true},

		{name: "Empty", mechanism: mechanism},
		{name: "OneComma", mechanism: mechanism, msg: "n,"},
		{name: "OnlyHeader", mechanism: mechanism, msg: "n,,"},
		{name: "NoNonce", mechanism: mechanism, msg: "n,,n="},
		{name: "EmptyNonce", mechanism: mechanism, msg: "n,,n=,r="},
		{name: "NonceTooLong", mechanism: mechanism, msg: "n,,n=,r=x" + longest},
		{name: "NonceNotPrintable", mechanism: mechanism, msg: "n,,n=,r=x\x00"},
		{name: "NonceNotASCII", mechanism: mechanism, msg: "n,,n=,r=xé"},
		{name: "NoName", mechanism: mechanism, msg: "n,,r=x"},
		{name: "Identity", mechanism: mechanism, msg: "n,a=root,n=,r=x"},
		{name: "MandatoryExtension", mechanism: mechanism, msg: "n,,m=x,n=,r=x"},
		{name: "UnknownFlag", mechanism: mechanism, msg: "q,,n=,r=x"},
		{name: "UnknownMechanism", mechanism: "SCRAM-SHA-1", msg: "n,,n=,r=x"},
		{name: "PlusNotOffered", mechanism: mechanismPlus, msg: "p=tls-server-end-point,,n=,r=x"},
		{name: "PlusWithoutBinding", mechanism: mechanismPlus, msg: "n,,n=,r=x", binding: binding},
		{name: "PlusWithAnother", mechanism: mechanismPlus, msg: "p=tls-unique,,n=,r=x", binding: binding},
		{name: "BindingWithoutPlus", mechanism: mechanism, msg: "p=tls-server-end-point,,n=,r=x", binding: binding},
		{name: "MessageTooLong", mechanism: mechanism, msg: "n,,n=,r=x,a=" + strings.Repeat("x", pgbounce.SCRAMMaxMessage)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := pgbounce.NewSCRAMServer(secret, test.binding)
			reply, err := s.First(test.mechanism, []byte(test.msg))
			if test.ok {
				require.NoError(t, err)
				require.Contains(t, string(reply), "r=x")
				return
			}
			require.Error(t, err)
			require.Nil(t, reply)
			_, _, err = s.Final([]byte("c=biws,r=x,p="))
			require.ErrorContains(t, err, "out of turn")
		})
	}
}

func TestSCRAMServerTakesTurns(t *testing.T) {
	t.Parallel()
	secret := pgbounce.NewSCRAMSecret("hunter2", 1)
	s := pgbounce.NewSCRAMServer(secret, nil)
	c, err := pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), s.Mechanisms(), nil)
	require.NoError(t, err)
	require.ErrorContains(t, c.Verify([]byte("v=")), "out of turn")
	first, err := s.First(mechanism, c.First())
	require.NoError(t, err)
	_, err = s.First(mechanism, c.First())
	require.Error(t, err, "a second first message")
	final, err := c.Final(first)
	require.NoError(t, err)
	_, _, err = s.Final(append(slices.Clone(final), 'x'))
	require.Error(t, err)
	_, _, err = s.Final(final)
	require.ErrorContains(t, err, "out of turn", "there is one attempt")
}

func TestSCRAMClientMalformed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		msg  func(nonce string) string
		ok   bool
	}{
		{"Good", func(n string) string { return "r=" + n + "x,s=AAAA,i=1" }, true},
		{"Extension", func(n string) string { return "r=" + n + "x,s=AAAA,i=1,a=b" }, true},
		{
			"LongestSalt",
			func(n string) string {
				return "r=" + n + "x,s=" + strings.Repeat("AAAA", pgbounce.SCRAMMaxSalt/3) + "AA==,i=1"
			},
			true,
		},
		{"Empty", func(string) string { return "" }, false},
		{"NonceAlone", func(n string) string { return "r=" + n + "x" }, false},
		{"NoServerPart", func(n string) string { return "r=" + n + ",s=AAAA,i=1" }, false},
		{"NonceOfAnother", func(string) string { return "r=AAAAAAAAAAAAAAAAAAAAAAAAx,s=AAAA,i=1" }, false},
		{"NonceTooLong", func(n string) string { return "r=" + n + strings.Repeat("x", 1024) + ",s=AAAA,i=1" }, false},
		{"NonceNotPrintable", func(n string) string { return "r=" + n + "\n,s=AAAA,i=1" }, false},
		{"NoSalt", func(n string) string { return "r=" + n + "x,s=,i=1" }, false},
		{"SaltTooLong", func(n string) string { return "r=" + n + "x,s=" + strings.Repeat("AAAA", 342) + ",i=1" }, false},
		{"SaltNotBase64", func(n string) string { return "r=" + n + "x,s=A,i=1" }, false},
		{"NoIterations", func(n string) string { return "r=" + n + "x,s=AAAA" }, false},
		{"ZeroIterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=0" }, false},
		{"NegativeIterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=-1" }, false},
		{"TooManyIterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=1000001" }, false},
		{"OverflowingIterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=18446744073709551617" }, false},
		{"MandatoryExtension", func(n string) string { return "m=a,r=" + n + "x,s=AAAA,i=1" }, false},
		{"Error", func(string) string { return "e=other-error" }, false},
		{
			"MessageTooLong",
			func(n string) string {
				return "r=" + n + "x,s=AAAA,i=1,a=" + strings.Repeat("x", pgbounce.SCRAMMaxMessage)
			},
			false,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, err := pgbounce.NewSCRAMClient(pgbounce.Password("hunter2"), []string{mechanism}, nil)
			require.NoError(t, err)
			reply, err := c.Final([]byte(test.msg(c.Nonce())))
			if test.ok {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			require.Nil(t, reply)
			require.Error(t, c.Verify([]byte("v=")))
		})
	}
}
