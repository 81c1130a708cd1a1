package pgbounce

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// tlsFiles is what a pgbouncer.ini says of the encryption of one side, beside
// the mode.
type tlsFiles struct {
	ca, cert, key, protocols, ciphers, curve string
}

// tlsKeys are the settings of one side.
func tlsKeys(side, mode string, of func(*File) (*TLS, *tlsFiles), load func(*File) error) []iniKey {
	name := func(key string) string { return side + "_tls_" + key }
	file := func(key string, field func(*tlsFiles) *string) iniKey {
		return textKey(name(key), "", func(f *File) *string {
			_, files := of(f)
			return field(files)
		}).loaded(load)
	}
	protocols := file("protocols", func(t *tlsFiles) *string { return &t.protocols }).
		defaults("secure").checked(checkProtocols).noted("versions must follow one another")
	ciphers := file("ciphers", func(t *tlsFiles) *string { return &t.ciphers }).
		defaults("default").checked(checkCiphers).
		noted("names are Go's, such as `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`; OpenSSL's have no effect")
	return []iniKey{
		{
			name: name("sslmode"), def: mode, load: load,
			set: func(f *File, value string) error {
				i := slices.Index(tlsModes, strings.ToLower(value))
				if i < 0 {
					return fmt.Errorf("want one of %s", strings.Join(tlsModes, ", "))
				}
				side, _ := of(f)
				side.Mode = TLSMode(i)
				return nil
			},
			get: func(f *File) string {
				side, _ := of(f)
				return side.Mode.String()
			},
		},
		file("ca_file", func(t *tlsFiles) *string { return &t.ca }),
		file("cert_file", func(t *tlsFiles) *string { return &t.cert }),
		file("key_file", func(t *tlsFiles) *string { return &t.key }),
		protocols,
		ciphers,
		noKey(side+"_tls13_ciphers", "", "Go chooses those of TLS 1.3"),
	}
}

func (f *File) loadClientTLS() error {
	t, files := &f.Config.ClientTLS, f.clientFiles
	t.Config = nil
	switch {
	case t.Mode == TLSDisable:
		return nil
	case files.cert == "" || files.key == "":
		return fmt.Errorf("client_tls_sslmode is %v: want client_tls_cert_file and client_tls_key_file", t.Mode)
	case t.Mode >= TLSVerifyCA && files.ca == "":
		// Without it any certificate would do that the system's authorities made.
		return fmt.Errorf("client_tls_sslmode is %v: want client_tls_ca_file", t.Mode)
	}
	c, authorities, err := files.load("client")
	if err != nil {
		return err
	}
	c.ClientCAs = authorities
	if t.Mode >= TLSVerifyCA {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	t.Config = c
	return nil
}

func (f *File) loadServerTLS() error {
	t := &f.Config.ServerTLS
	t.Config = nil
	if t.Mode == TLSDisable {
		return nil
	}
	c, authorities, err := f.serverFiles.load("server")
	if err != nil {
		return err
	}
	c.RootCAs = authorities
	t.Config = c
	return nil
}

// load reads the files of one side.
func (t tlsFiles) load(side string) (*tls.Config, *x509.CertPool, error) {
	c := &tls.Config{CipherSuites: parseCiphers(t.ciphers)}
	c.MinVersion, c.MaxVersion, _ = parseProtocols(t.protocols)
	if id, ok := curves[strings.ToLower(t.curve)]; ok {
		c.CurvePreferences = []tls.CurveID{id}
	}
	if t.cert != "" || t.key != "" {
		if t.cert == "" || t.key == "" {
			return nil, nil, fmt.Errorf("want both %[1]s_tls_cert_file and %[1]s_tls_key_file, or none", side)
		}
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, nil, fmt.Errorf("%[1]s_tls_cert_file %[2]s, %[1]s_tls_key_file %[3]s: %[4]w", side, t.cert, t.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if t.ca == "" {
		return c, nil, nil
	}
	text, err := os.ReadFile(t.ca)
	if err != nil {
		return nil, nil, fmt.Errorf("%s_tls_ca_file: %w", side, err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(text) {
		return nil, nil, fmt.Errorf("%s_tls_ca_file: %s has no certificate", side, t.ca)
	}
	return c, authorities, nil
}

// tlsVersions begin with tls.VersionTLS10, and their numbers follow one another.
var tlsVersions = []string{"tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"}

// parseProtocols reads a list of versions.
func parseProtocols(value string) (low, high uint16, err error) {
	var has [4]bool
	for name := range strings.FieldsFuncSeq(strings.ToLower(value), func(r rune) bool { return strings.ContainsRune(",: ", r) }) {
		switch name {
		case "all", "legacy", "tlsv1":
			has = [4]bool{true, true, true, true}
		case "secure", "default":
			has[2], has[3] = true, true
		default:
			i := slices.Index(tlsVersions, name)
			if i < 0 {
				return 0, 0, errors.New("want tlsv1.0 to tlsv1.3, secure or all")
			}
			has[i] = true
		}
	}
	first, last := slices.Index(has[:], true), 3
	if first < 0 {
		return 0, 0, errors.New("want a version")
	}
	for !has[last] {
		last--
	}
	if slices.Contains(has[first:last], false) {
		return 0, 0, errors.New("want versions without one left out between them")
	}
	return tls.VersionTLS10 + uint16(first), tls.VersionTLS10 + uint16(last), nil
}

func checkProtocols(value string) error {
	_, _, err := parseProtocols(value)
	return err
}

// goCiphers is the word for Go's own choice. PgBouncer has had several for
// OpenSSL's.
func goCiphers(value string) bool {
	return slices.Contains([]string{"", "default", "secure", "fast", "normal"}, strings.ToLower(value))
}

// parseCiphers returns nil for Go's own choice.
func parseCiphers(value string) []uint16 {
	if goCiphers(value) {
		return nil
	}
	var ids []uint16
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if strings.EqualFold(value, "all") || slices.Contains(cipherNames(value), s.Name) {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func cipherNames(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(",: ", r) })
}

func checkCiphers(value string) error {
	ids := parseCiphers(value)
	switch {
	case goCiphers(value), strings.EqualFold(value, "all"), len(ids) > 0 && len(ids) == len(cipherNames(value)):
		return nil
	}
	return iniWarning("these names are not Go's, so Go's own choice stays")
}

var curves = map[string]tls.CurveID{
	"x25519": tls.X25519, "prime256v1": tls.CurveP256, "p-256": tls.CurveP256,
	"secp384r1": tls.CurveP384, "p-384": tls.CurveP384, "secp521r1": tls.CurveP521, "p-521": tls.CurveP521,
}

func curveKey(name string, of func(*File) *tlsFiles) iniKey {
	return textKey(name, "auto", func(f *File) *string { return &of(f).curve }).checked(func(value string) error {
		if _, ok := curves[strings.ToLower(value)]; !ok && !strings.EqualFold(value, "auto") {
			return iniWarning("Go has no such curve, so its own choice stays")
		}
		return nil
	})
}

func checkAddr(value string) error {
	if value == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(value); err != nil {
		return errors.New("want host:port")
	}
	return nil
}
