package sqltest

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/testenv"
)

const envMariaDB = "IDEM_MARIADB"

// StartMariaDB runs a MariaDB of the test's own: free port, own folder, an empty database
// test, no waiting for the disk. settings, options of mariadbd
// ("--innodb-lock-wait-timeout=1"), come last and win. The server is gone when the test
// ends, also when the test process is killed (Linux). It takes about a second. Its user
// with every privilege is root, without a password; a test that runs as root runs it as
// the user mysql or nobody.
//
// The program is what IDEM_MARIADB names, else mariadbd of the PATH or of /usr/sbin, with
// mariadb-install-db beside it or in the PATH. Without them the test ends as
// [testenv.Missing] says.
func StartMariaDB(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	return start(tb, newMariaDB(tb), "", settings)
}

// StartMariaDBIn is StartMariaDB with the data in a new folder in dir, for tests that
// fill a disk. It needs about 60 MB there.
func StartMariaDBIn(tb testing.TB, dir string, settings ...string) *Server {
	tb.Helper()
	return start(tb, newMariaDB(tb), dir, settings)
}

func newMariaDB(tb testing.TB) *mariadb {
	tb.Helper()
	const cure = "bash .ci/mariadb, or name the program mariadbd in " + envMariaDB + ", or make test"
	name := os.Getenv(envMariaDB)
	given := name != ""
	var server string
	var err error
	if given {
		if server, err = exec.LookPath(name); err != nil {
			tb.Fatalf("%s: %v", envMariaDB, err)
		}
	} else if server = lookPath("mariadbd", "/usr/sbin"); server == "" {
		testenv.Missing(tb, "mariadbd", cure)
	}
	if server, err = filepath.EvalSymlinks(server); err != nil {
		tb.Fatal(err)
	}
	home := filepath.Dir(filepath.Dir(server))
	install := lookPath("mariadb-install-db", filepath.Join(home, "bin"), filepath.Join(home, "scripts"))
	if install == "" {
		testenv.Missing(tb, "mariadb-install-db", cure)
	}
	return &mariadb{server: server, install: install, home: home}
}

// lookPath finds a program in the PATH or in one of the folders.
func lookPath(name string, dirs ...string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range dirs {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

type mariadb struct {
	server, install, home string
	origin                *Server // not nil: that of this replica
}

func (*mariadb) name() string    { return "mariadb" }
func (*mariadb) users() []string { return []string{"mysql", "nobody"} }

// logSize is that of InnoDB's log: the default of 96 MB would be written for each test.
const logSize = "--innodb-log-file-size=16M"

func (m *mariadb) create(s *Server) error {
	err := s.do(m.install, "--no-defaults", "--basedir="+m.home, "--datadir="+s.data,
		"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", logSize)
	if err != nil {
		return err
	}
	return os.WriteFile(m.opening(s), []byte("CREATE DATABASE test;\n"), 0o644)
}

// opening are the statements that the server executes when it runs for the first time.
func (*mariadb) opening(s *Server) string { return filepath.Join(s.dir, "opening.sql") }

func (m *mariadb) command(s *Server, first bool) *exec.Cmd {
	args := []string{
		"--no-defaults",
		"--basedir=" + m.home,
		"--datadir=" + s.data,
		"--bind-address=127.0.0.1",
		"--port=" + strconv.Itoa(s.port),
		"--socket=",
		"--pid-file=" + filepath.Join(s.data, "pid"),
		"--skip-name-resolve", // which would count connections that only looked whether it answers
		"--innodb-flush-method=nosync",
		logSize,
	}
	if first {
		args = append(args, "--init-file="+m.opening(s))
	}
	return exec.Command(m.server, append(args, s.args...)...)
}

func (*mariadb) dsn(addr string) string { return "root@tcp(" + addr + ")/test" }

// answers tells whether the server greets, which it does when it is ready.
func (*mariadb) answers(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	greeting := make([]byte, 5) // its length, its number, the protocol's version
	_, err = io.ReadFull(conn, greeting)
	return err == nil && greeting[4] == 10
}

func (*mariadb) quit(*Server) {}
func (*mariadb) gone(*Server) {}
