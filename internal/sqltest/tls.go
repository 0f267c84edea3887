package sqltest

import (
	"path/filepath"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// StartPostgresTLS is [StartPostgres] for a server that speaks TLS to clients that ask for
// it, with a certificate of authority.
func StartPostgresTLS(tb testing.TB, version string, authority *testenv.Authority) *Server {
	tb.Helper()
	cert, key := certify(tb, authority, (*postgres)(nil).users())
	return StartPostgres(tb, version, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key)
}

// StartMariaDBTLS is [StartMariaDB] for a server that speaks TLS only, with a certificate of
// authority.
func StartMariaDBTLS(tb testing.TB, authority *testenv.Authority) *Server {
	tb.Helper()
	cert, key := certify(tb, authority, (*mariadb)(nil).users())
	return StartMariaDB(tb, "--ssl-cert="+cert, "--ssl-key="+key, "--require-secure-transport=ON")
}

// certify makes a certificate and a key that the user who runs the server may read.
func certify(tb testing.TB, authority *testenv.Authority, users []string) (certFile, keyFile string) {
	tb.Helper()
	certFile, keyFile, _ = authority.Certify("server")
	as, err := unprivileged(users)
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range []string{certFile, keyFile} {
		if err := as.owns(f); err != nil {
			tb.Fatal(err)
		}
	}
	if err := as.enters(filepath.Dir(certFile)); err != nil {
		tb.Fatal(err)
	}
	return certFile, keyFile
}
