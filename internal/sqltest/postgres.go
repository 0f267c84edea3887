package sqltest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/testenv"
)

// envPostgres is the environment variable that, with a version behind it, names the
// folder of the programs.
const envPostgres = "IDEM_POSTGRES_"

// tested are the versions that .ci/postgres gets, the first of them preferred.
var tested = []string{"15", "18"}

// StartPostgres runs a PostgreSQL of the test's own: free port, own folder, fsync off.
// settings, lines of postgresql.conf ("max_connections=20"), come last and win. The
// server is gone when the test ends, also when the test process is killed (Linux). It
// takes about a second. Its superuser is postgres, without a password; root, whom the
// server refuses, runs it as the user postgres or nobody.
//
// version is a major one. Its programs are in the folder that IDEM_POSTGRES_15 names (of
// version 15), else beside the postgres of the PATH if that is of this version, else where
// Debian's packages put them, else where .ci/postgres did. An empty version means the
// first that is found, of the PATH before 15 before 18. Without the programs the test
// ends as [testenv.Missing] says.
func StartPostgres(tb testing.TB, version string, settings ...string) *Server {
	tb.Helper()
	return start(tb, &postgres{bin: postgresBin(tb, version)}, "", settings)
}

// StartPostgresIn is StartPostgres with the data in a new folder in dir, for tests that
// fill a disk. It needs about 40 MB there.
func StartPostgresIn(tb testing.TB, version, dir string, settings ...string) *Server {
	tb.Helper()
	return start(tb, &postgres{bin: postgresBin(tb, version)}, dir, settings)
}

// postgresBin is the folder of the programs.
func postgresBin(tb testing.TB, version string) string {
	tb.Helper()
	versions := tested
	if version != "" {
		versions = []string{version}
	}
	for _, v := range versions {
		if bin := os.Getenv(envPostgres + v); bin != "" {
			if got := postgresVersion(bin); got != v {
				tb.Fatalf("%s%s: %s holds a PostgreSQL of version %q", envPostgres, v, bin, got)
			}
			return bin
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			bin := filepath.Dir(path)
			if got := postgresVersion(bin); got == version || version == "" && got != "" {
				return bin
			}
		}
	}
	for _, v := range versions {
		for _, bin := range []string{
			filepath.Join("/usr/lib/postgresql", v, "bin"),
			filepath.Join(testenv.Root(tb), ".cache", "postgres-"+v, "bin"),
		} {
			if postgresVersion(bin) == v {
				return bin
			}
		}
	}
	testenv.Missing(tb, strings.TrimSpace("PostgreSQL "+version),
		fmt.Sprintf("bash .ci/postgres %s, or name the folder of its programs in %s%[1]s, or make test", versions[0], envPostgres))
	return ""
}

// postgresVersion is the major version of the server in a folder, empty where there is no
// whole one.
func postgresVersion(bin string) string {
	for _, name := range []string{"initdb", "pg_basebackup"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return ""
		}
	}
	out, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return ""
	}
	_, version, _ := strings.Cut(string(out), "(PostgreSQL) ")
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	return version[:max(digits, 0)]
}

type postgres struct {
	bin    string
	origin *Server // not nil: that of this hot standby
}

func (*postgres) name() string    { return "postgres" }
func (*postgres) users() []string { return []string{"postgres", "nobody"} }

func (p *postgres) create(s *Server) error {
	if p.origin != nil {
		return s.do(filepath.Join(p.bin, "pg_basebackup"), "--pgdata", s.data, "--write-recovery-conf",
			"--checkpoint=fast", "--no-sync", "--host=127.0.0.1", "--port", strconv.Itoa(p.origin.port), "--username=postgres")
	}
	return s.fill(filepath.Join(p.bin, "postgres"), filepath.Join(p.bin, "initdb"), "--pgdata=", "--no-sync", "--no-instructions",
		"--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C")
}

func (p *postgres) replica(origin *Server) engine {
	return &postgres{bin: p.bin, origin: origin}
}

func (p *postgres) command(s *Server, _ bool) *exec.Cmd {
	args := []string{"-D", s.data, "-p", strconv.Itoa(s.port)}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1",
		"unix_socket_directories=",
		"fsync=off",
		"dynamic_shared_memory_type=mmap", // in the data folder: what is killed leaves nothing elsewhere
	}, s.args...) {
		args = append(args, "-c", setting)
	}
	return exec.Command(filepath.Join(p.bin, "postgres"), args...)
}

func (*postgres) dsn(addr string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: addr, Path: "/postgres", RawQuery: "sslmode=disable"}
	return u.String()
}

// answers opens a session.
func (*postgres) answers(addr string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	const hello = "\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, 4+uint32(len(hello))), hello...)); err != nil {
		return false
	}
	in := bufio.NewReader(conn)
	if new(postgresWire).answered(in) != nil {
		return false
	}
	// Once the server has closed its side, the session is no longer counted.
	_, _ = conn.Write([]byte("X\x00\x00\x00\x04"))
	_, _ = io.Copy(io.Discard, in)
	return true
}

// quit ends the server without a checkpoint.
func (*postgres) quit(s *Server) {
	if s.proc.Signal(syscall.SIGQUIT) != nil {
		return
	}
	select {
	case <-s.proc.Done():
	case <-time.After(stopTimeout):
	}
}

// gone removes the few bytes of shared memory that a killed server leaves for its successor.
func (*postgres) gone(s *Server) {
	if id := sharedMemory(s.data); id != "" {
		_ = exec.Command("ipcrm", "-m", id).Run()
	}
}

// sharedMemory is the number of a server's shared memory, which stands in its lock file.
// A server that was not killed has removed both.
func sharedMemory(data string) string {
	text, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	lines := strings.Split(string(text), "\n")
	if err != nil || len(lines) < 7 {
		return ""
	}
	if ids := strings.Fields(lines[6]); len(ids) == 2 { // a key and a number
		return ids[1]
	}
	return ""
}

func (*postgres) wire() wire { return new(postgresWire) }

// postgresWire is PostgreSQL's protocol, of version 3.
type postgresWire struct{ started bool }

// A client opens with a length and the protocol's version. Before that it may ask for
// encryption, in the same form, which gets a single byte as its answer.
const protocol3 = 3

func (w *postgresWire) request(in *bufio.Reader) (raw, statement []byte, err error) {
	if w.started {
		raw, err = postgresMessage(in)
		if err == nil && raw[0] == 'Q' {
			statement = raw[5:]
		}
		return raw, statement, err
	}
	if raw, err = postgresBody(in, nil); err == nil && len(raw) >= 8 {
		w.started = binary.BigEndian.Uint16(raw[4:]) == protocol3
	}
	return raw, nil, err
}

// answered reads to the end of an answer; an error ends a session that is not open yet.
func (*postgresWire) answered(in *bufio.Reader) error {
	for {
		message, err := postgresMessage(in)
		if err != nil {
			return err
		}
		if message[0] == 'Z' {
			return nil
		}
	}
}

// postgresMessage reads a kind, a length, and what is that long.
func postgresMessage(in *bufio.Reader) ([]byte, error) {
	kind, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	return postgresBody(in, []byte{kind})
}

func postgresBody(in *bufio.Reader, message []byte) ([]byte, error) {
	head, err := in.Peek(4)
	if err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head) // its own four bytes included
	if size < 4 {
		return nil, fmt.Errorf("not PostgreSQL's protocol: a message of %d bytes", size)
	}
	at := len(message)
	message = append(message, make([]byte, size)...)
	_, err = io.ReadFull(in, message[at:])
	return message, err
}
