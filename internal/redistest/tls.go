package redistest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
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
	dir := tb.TempDir()
	now := time.Now()
	key := newKey(tb)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caFile := writePEM(tb, dir, "ca.crt", "CERTIFICATE", sign(tb, authority, authority, key, key))
	cert := func(serial int64, name string, usage x509.ExtKeyUsage) (certFile, keyFile string) {
		own := newKey(tb)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		der, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			tb.Fatal(err)
		}
		return writePEM(tb, dir, name+".crt", "CERTIFICATE", sign(tb, c, authority, own, key)),
			writePEM(tb, dir, name+".key", "PRIVATE KEY", der)
	}
	serverCert, serverKey := cert(2, "server", x509.ExtKeyUsageServerAuth)
	clientCert, clientKey := cert(3, "client", x509.ExtKeyUsageClientAuth)

	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(caFile)
	if err != nil || !roots.AppendCertsFromPEM(text) {
		tb.Fatalf("reading %s: %v", caFile, err)
	}
	return startServer(&Server{
		tb: tb, bin: bin, tls: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		args: append([]string{
			"--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", caFile, "--tls-auth-clients", "yes",
		}, args...),
	})
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// sign makes a certificate for the public half of own, signed with parent's key.
func sign(tb testing.TB, c, parent *x509.Certificate, own, key *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &own.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func writePEM(tb testing.TB, dir, name, kind string, der []byte) string {
	tb.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}
