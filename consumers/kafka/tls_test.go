package idemkafka_test

import (
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/kafkatest"
	"github.com/idemq/idemq/internal/testenv"
)

// Both consumers over TLS with a broker whose certificate is verified, and dead letters as
// well; one that another authority vouches for is waited for, and handled nothing from.
func TestTLS(t *testing.T) {
	authority := testenv.NewAuthority(t)
	_, _, keystore := authority.Certify("server")
	var addr string
	srv := kafkatest.StartBehind(t, func(upstream string) string { addr = upstream; return upstream },
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,BEHIND:SSL",
		"listener.name.behind.ssl.keystore.type=PEM", "listener.name.behind.ssl.keystore.location="+keystore)
	v := setupOn(t, srv, 1)
	config := func(a *testenv.Authority) kafka.ReaderConfig {
		c := v.config()
		c.Brokers = []string{addr}
		c.Dialer = &kafka.Dialer{TLS: a.Trusting()}
		return c
	}
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			v.t, v.group = t, unique("billing")
			transport := &kafka.Transport{TLS: authority.Trusting()}
			v.w = &kafka.Writer{Addr: kafka.TCP(addr), RequiredAcks: kafka.RequireAll, Transport: transport}
			t.Cleanup(func() { _ = v.w.Close(); transport.CloseIdleConnections() })
			first, second := unique("a"), unique("a")

			var j journal
			v.events = &events{}
			v.guard = v.newGuard()
			bad := v.runWith(way, config(testenv.NewAuthority(t)), j.handle, v.deadLetter())
			testenv.Await(t, "the certificate to be refused", func() bool { return v.events.has(idem.EventWaiting, "certificate") })
			bad.mustStop()
			j.want(t)

			v.publish(first, second)
			good := v.runWith(way, config(authority), j.handle, v.deadLetter())
			testenv.Await(t, "both messages", func() bool { return j.len() >= 2 })
			v.settled()
			good.mustStop()
			got := j.list()
			if n := len(got); got[n-2] != first || got[n-1] != second {
				t.Errorf("handled %q, want %q and %q at the end", got, first, second)
			}
		})
	}
}
