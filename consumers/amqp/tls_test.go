package idemamqp_test

import (
	"crypto/tls"
	"errors"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	idemamqp "github.com/idemq/idemq/consumers/amqp"
	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/rabbittest"
	"github.com/idemq/idemq/internal/testenv"
)

// A queue consumer over TLS with a broker whose certificate is verified; one that another
// authority vouches for ends Run, since no waiting makes it the right one.
func TestTLS(t *testing.T) {
	t.Parallel()
	authority := testenv.NewAuthority(t)
	certFile, keyFile, _ := authority.Certify("server")
	addr := child.FreeAddr(t)
	v := setupOn(t, rabbittest.Start(t, "listeners.ssl.1 = "+addr,
		"ssl_options.cacertfile = "+authority.File, "ssl_options.certfile = "+certFile, "ssl_options.keyfile = "+keyFile))
	v.publish("a", "a2")
	url := "amqps://guest:guest@" + addr + "/"

	client := func(config *tls.Config) idemamqp.Option {
		return idemamqp.Config(amqp.Config{TLSClientConfig: config, Heartbeat: 10 * time.Second})
	}
	var j journal
	bad := v.runAt(url, j.handle, v.deadLetter(), client(testenv.NewAuthority(t).Trusting()))
	err := bad.result()
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("a broker that is not trusted: Run returned %v, want an error about its certificate", err)
	}
	j.want(t)

	good := v.runAt(url, j.handle, v.deadLetter(), client(authority.Trusting()))
	v.settled()
	if n := v.srv.Eval(t, `length([C || C <- rabbit_networking:connections(), rabbit_networking:connection_info(C, [ssl]) == [{ssl, true}]])`); n != "1" {
		t.Errorf("%s connections are encrypted, want the consumer's", n)
	}
	if err := good.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	j.want(t, "a", "a2")
}
