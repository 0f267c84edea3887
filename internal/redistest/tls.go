package redistest

import (
	"crypto/tls"
	"testing"

	"github.com/idemq/idemq/internal/testenv"
)

// StartTLS is [Start] for a server that speaks TLS only and asks clients for a
// certificate. All certificates are made for the test. [Server.Options] has what a
// client needs.
func StartTLS(tb testing.TB, args ...string) *Server {
	tb.Helper()
	bin := binary(tb)
	if bin == "" {
		Start(tb) // ends the test, unless it gives a shared server
		needsProgram(tb)
	}
	authority := testenv.NewAuthority(tb)
	serverCert, serverKey, _ := authority.Certify("server")
	clientCert, clientKey, _ := authority.Certify("client")
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		tb.Fatal(err)
	}
	client := authority.Trusting()
	client.Certificates = []tls.Certificate{pair}
	return startServer(&Server{
		tb: tb, bin: bin, tls: client,
		args: append([]string{
			"--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", authority.File, "--tls-auth-clients", "yes",
		}, args...),
	})
}
