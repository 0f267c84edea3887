package idemnats_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/natsstore"
	"github.com/idemq/idemq/internal/natstest"
	"github.com/idemq/idemq/internal/testenv"
)

// A consumer, and a store, over TLS with a server whose certificate is verified; a server
// that another authority vouches for gets no connection.
func TestTLS(t *testing.T) {
	t.Parallel()
	authority := testenv.NewAuthority(t)
	certFile, keyFile, _ := authority.Certify("server")
	srv := natstest.Start(t, func(o *server.Options) {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		o.TLS, o.TLSConfig = true, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	})
	nc := srv.Connect(t, nats.Secure(authority.Trusting()))
	if !nc.TLSRequired() {
		t.Error("the connection is not encrypted")
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
	if err != nil {
		t.Fatal(err)
	}
	source, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "billing", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: -1})
	if err != nil {
		t.Fatal(err)
	}
	v := &env{t: t, srv: srv, js: js, source: source, events: &events{}}
	v.guard = idem.New(idem.WithStore(natsstore.New(js, "claims")), idem.WithObserver(v.events))
	v.publish("a", "a2")
	var j journal
	r := v.run(j.handle)
	v.settled()
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	j.want(t, "a", "a2")
	if n := len(v.events.of(idem.EventCommitted)); n != 2 {
		t.Errorf("%d completions, want 2", n)
	}

	stranger := testenv.NewAuthority(t)
	bad, err := nats.Connect(srv.URL(), nats.Secure(stranger.Trusting()))
	if err == nil {
		bad.Close()
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("a server that is not trusted: got %v, want an error about its certificate", err)
	}
}
