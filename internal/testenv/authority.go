package testenv

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

// Authority signs certificates of servers and clients for one test.
type Authority struct {
	// File is the authority's own certificate, in PEM.
	File string

	tb   testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	last int64
}

// NewAuthority makes an authority that nobody else trusts.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	now := time.Now()
	a := &Authority{tb: tb, dir: tb.TempDir(), key: newKey(tb), last: 1}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.File = a.write("ca.crt", &pem.Block{Type: "CERTIFICATE", Bytes: a.sign(a.cert, a.key)})
	return a
}

// Certify makes a certificate of 127.0.0.1 for a server and for a client, and its key, in
// files of PEM whose names begin with name; both has one after the other.
func (a *Authority) Certify(name string) (certFile, keyFile, both string) {
	a.tb.Helper()
	own := newKey(a.tb)
	a.last++
	cert := &pem.Block{Type: "CERTIFICATE", Bytes: a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, own)}
	der, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		a.tb.Fatal(err)
	}
	key := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	return a.write(name+".crt", cert), a.write(name+".key", key), a.write(name+".pem", key, cert)
}

// Trusting is what a client needs that trusts this authority and no other.
func (a *Authority) Trusting() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.parsed())
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

func (a *Authority) parsed() *x509.Certificate {
	a.tb.Helper()
	text, err := os.ReadFile(a.File)
	if err != nil {
		a.tb.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		a.tb.Fatal(err)
	}
	return cert
}

// sign makes a certificate for the public half of own.
func (a *Authority) sign(c *x509.Certificate, own *ecdsa.PrivateKey) []byte {
	a.tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &own.PublicKey, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return der
}

func (a *Authority) write(name string, blocks ...*pem.Block) string {
	a.tb.Helper()
	var text []byte
	for _, b := range blocks {
		text = append(text, pem.EncodeToMemory(b)...)
	}
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		a.tb.Fatal(err)
	}
	return path
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}
