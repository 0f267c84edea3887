package sqltest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
// fill a disk. It needs about 50 MB there.
func StartMariaDBIn(tb testing.TB, dir string, settings ...string) *Server {
	tb.Helper()
	return start(tb, newMariaDB(tb), dir, settings)
}

func newMariaDB(tb testing.TB) *mariadb {
	tb.Helper()
	const cure = "apt-get install mariadb-server, or name the program mariadbd in " + envMariaDB + ", or make test"
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
	err := s.fill(m.server, m.install, "--datadir=", "--no-defaults", "--basedir="+m.home,
		"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", logSize)
	if err != nil {
		return err
	}
	statements := []string{"SET sql_log_bin=0", "CREATE DATABASE test"}
	if m.origin != nil {
		statements = append(statements,
			"CREATE USER reader@127.0.0.1",
			"GRANT ALL PRIVILEGES ON *.* TO reader@127.0.0.1",
			"REVOKE SUPER, READ_ONLY ADMIN ON *.* FROM reader@127.0.0.1",
			fmt.Sprintf("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='root', "+
				"MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos", m.origin.port),
			"START SLAVE")
	}
	return os.WriteFile(m.opening(s), []byte(strings.Join(statements, ";\n")+";\n"), 0o644)
}

// opening are the statements that the server executes when it runs for the first time.
func (*mariadb) opening(s *Server) string { return filepath.Join(s.dir, "opening.sql") }

func (m *mariadb) replica(origin *Server) engine {
	r := *m
	r.origin = origin
	return &r
}

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
		"--server-id=" + strconv.Itoa(s.port),
		"--log-bin=binlog", // what a replica reads
	}
	if m.origin != nil {
		args = append(args, "--read-only")
	}
	if first {
		args = append(args, "--init-file="+m.opening(s))
	}
	return exec.Command(m.server, append(args, s.args...)...)
}

func (m *mariadb) dsn(addr string) string {
	if m.origin != nil {
		return "reader@tcp(" + addr + ")/test"
	}
	return "root@tcp(" + addr + ")/test"
}

// answers tells whether the server greets, which it does when it is ready.
func (*mariadb) answers(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	greeting, err := mysqlPacket(bufio.NewReader(conn))
	return err == nil && len(greeting) > 4 && greeting[4] == 10 // the protocol's version; an error has another
}

func (*mariadb) quit(*Server) {}
func (*mariadb) gone(*Server) {}

func (*mariadb) wire() wire { return mysqlWire{} }

// mysqlWire is the protocol of MySQL and MariaDB.
type mysqlWire struct{}

func (mysqlWire) request(in *bufio.Reader) (raw, statement []byte, err error) {
	raw, err = mysqlPacket(in)
	const query = 3
	if err == nil && len(raw) > 4 && raw[3] == 0 && raw[4] == query { // a command is the first packet of an exchange
		statement = raw[5:]
	}
	return raw, statement, err
}

// answered reads the answer to a statement that returns no rows: one packet.
func (mysqlWire) answered(in *bufio.Reader) error {
	_, err := mysqlPacket(in)
	return err
}

// mysqlPacket reads a length of three bytes, a number, and what is that long.
func mysqlPacket(in *bufio.Reader) ([]byte, error) {
	head, err := in.Peek(4)
	if err != nil {
		return nil, err
	}
	packet := make([]byte, 4+int(head[0])+int(head[1])<<8+int(head[2])<<16)
	_, err = io.ReadFull(in, packet)
	return packet, err
}
