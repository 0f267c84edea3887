package kafkatest

import (
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// shared is the broker that the tests of one package have in common. They have no
// other owner in common than their process: Main ends it.
var shared struct {
	mu     sync.Mutex
	server *Server
}

// Shared is a broker for every test of a package that asks for it. Topics and groups
// need names of the test's own, and other ones each time that -count repeats it; Kill,
// Restart, Pause and Resume end the test. The first call starts the broker. The
// package's TestMain has to call [Main].
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		lib := jars(tb)
		// Not tb.TempDir: the broker outlives this test.
		dir, err := os.MkdirTemp("", "kafkatest")
		if err != nil {
			tb.Fatal(err)
		}
		s := &Server{tb: tb, lib: lib, dir: dir}
		tb.Cleanup(func() {
			if s.proc == nil {
				_ = os.RemoveAll(dir) // it did not start
			}
		})
		s.start()
		shared.server = s
	}
	return &Server{tb: tb, addr: shared.server.addr, lib: shared.server.lib}
}

// Main wraps the tests of a package that uses [Shared]: the broker is gone when Run
// returns, before goleak looks.
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(kafkatest.Main(m)) }
func Main(m *testing.M) goleak.TestingM { return tests{m} }

type tests struct{ m *testing.M }

func (t tests) Run() int {
	defer func() {
		shared.mu.Lock()
		defer shared.mu.Unlock()
		if shared.server != nil {
			shared.server.proc.Kill()
			_ = os.RemoveAll(shared.server.dir)
		}
	}()
	return t.m.Run()
}
