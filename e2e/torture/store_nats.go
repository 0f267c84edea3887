package torture

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/idemq/idemq/e2e/torture/role"
)

const natsBucket = "torture"

type natsStore struct {
	tb     testing.TB
	server *natsServer
	proxy  *Proxy
	prefix string
}

// NewNATSKV starts a NATS server for a key-value bucket. It is a Forgetter: a failover is a
// crash of its machine, after which it has what was on the disk some time before.
func NewNATSKV(tb testing.TB) Store {
	tb.Helper()
	s := &natsStore{tb: tb, server: startNATS(tb)}
	s.proxy = NewProxy(tb, s.server.addr())
	return s
}

func (s *natsStore) Kind() string    { return "nats" }
func (s *natsStore) Version() string { return s.server.version() }
func (s *natsStore) Proxy() *Proxy   { return s.proxy }
func (s *natsStore) Restart()        { s.server.restart(func() error { return nil }) }

func (s *natsStore) Role() role.Store {
	return role.Store{Kind: "nats", Addr: "nats://" + s.proxy.Addr(), Bucket: natsBucket, Prefix: s.prefix}
}

func (s *natsStore) Round(run string) {
	s.tb.Helper()
	s.prefix = run
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	if err := s.server.js.DeleteKeyValue(ctx, natsBucket); err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) {
		s.tb.Fatalf("deleting bucket %s: %v", natsBucket, err)
	}
}

// RestartEmpty implements Forgetter.
func (s *natsStore) RestartEmpty() {
	s.tb.Helper()
	s.server.restart(func() error { return os.RemoveAll(s.server.data()) })
}

// FailOver implements Forgetter.
func (s *natsStore) FailOver() (since int64) {
	s.tb.Helper()
	saved := filepath.Join(s.server.dir, "saved")
	since = s.server.save(saved)
	wait(forgetFor, nil)
	s.server.restart(func() error {
		return errors.Join(os.RemoveAll(s.server.data()), os.Rename(saved, s.server.data()))
	})
	return since
}
