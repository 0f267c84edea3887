package redisstore

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

// reply is an error as Redis answers it.
type reply string

func (r reply) Error() string { return string(r) }
func (reply) RedisError()     {}

func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		err         error
		unavailable bool
		word        string
	}{
		{io.EOF, true, "EOF"},
		{context.DeadlineExceeded, true, "deadline"},
		{redis.ErrClosed, false, "closed by this program"},
		{redis.ErrPoolTimeout, true, "pool"},
		{reply("LOADING Redis is loading the dataset in memory"), true, "loading"},
		{reply("CLUSTERDOWN The cluster is down"), true, "down"},
		{reply("TRYAGAIN Multiple keys request during rehashing of slot"), true, "slot"},
		{reply("MASTERDOWN Link with MASTER is down"), true, "down"},
		{reply("BUSY Redis is busy running a script."), true, "busy"},
		{reply("ERR max number of clients reached"), true, "clients"},
		{reply("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"), true, "replica"},
		{reply("ERR WAIT cannot be used with replica instances. Please also note that ..."), true, "replica"},
		{reply("NOAUTH Authentication required."), false, "password"},
		{reply("WRONGPASS invalid username-password pair or user is disabled."), false, "password"},
		{reply("NOPERM this user has no permissions to run the 'evalsha' command"), false, "right"},
		{reply("READONLY You can't write against a read only replica."), false, "primary"},
		{reply("OOM command not allowed when used memory > 'maxmemory'."), false, "maxmemory"},
		{reply("MISCONF Errors writing to the AOF file: No space left on device"), false, "disk"},
		{reply("ERR unknown command 'EVALSHA'"), false, "7.0"},
		{reply("ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'"), false, "7.0"},
		{reply("MOVED 3999 127.0.0.1:6381"), false, "NewClusterClient"},
		{reply("ERR something new"), false, "something new"},
	} {
		err := explain("doing it", tt.err)
		if errors.Is(err, store.ErrUnavailable) != tt.unavailable {
			t.Errorf("%v: unavailable is %v", err, !tt.unavailable)
		}
		if !errors.Is(err, tt.err) || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(tt.word)) {
			t.Errorf("%v: wraps the cause: %v; no word of %q", err, errors.Is(err, tt.err), tt.word)
		}
	}
}
