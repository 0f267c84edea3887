package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/internal/child"
	"github.com/idemq/idemq/internal/testenv"
)

// camelConsumers is one for each partition, as the other rows have: Camel's default is one for
// all.
const camelConsumers = partitions

// camelRow is Camel's idempotent consumer with its repository in Redis: camel has its
// source. It is a process of Java, which is measured after it has read everything once.
func camelRow() Row {
	return Row{Name: fmt.Sprintf("Camel, idempotent consumer (Redis), %d consumers", camelConsumers), Kind: Peer, Late: true, warm: warmCamel}
}

// camelArgs are what the process is started with.
func (s *Site) camelArgs(w *Work) ([]string, error) {
	host, port, err := net.SplitHostPort(s.Redis.Options().Addr)
	return []string{s.Addr, s.Source, s.Group, host, port, strconv.Itoa(w.Messages()), strconv.Itoa(w.Distinct()), strconv.Itoa(camelConsumers)}, err
}

func warmCamel(tb testing.TB, s *Site, w *Work) (consume, error) {
	tb.Helper()
	out, err := exec.Command(filepath.Join(testenv.Root(tb), ".ci", "camel")).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("it cannot be built here: %w: %s", err, child.Tail(out))
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	home := lines[len(lines)-1]
	args, err := s.camelArgs(w)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("java", append([]string{
		"-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
		"-cp", filepath.Join(home, "classes") + ":" + filepath.Join(home, "lib", "*"), "IdempotentRoute",
	}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not cmd.StdoutPipe, which the end of the process closes under its reader.
	said, says := io.Pipe()
	cmd.Stdout = says
	proc, err := child.Start(cmd)
	if err != nil {
		return nil, err
	}
	go func() {
		<-proc.Done()
		_ = says.Close()
	}()
	tb.Cleanup(func() {
		_ = said.Close()
		proc.Kill()
	})
	c := &camel{proc: proc, in: in, out: bufio.NewReader(said)}
	limit := time.AfterFunc(runLimit, proc.Kill)
	defer limit.Stop()
	if _, err := c.line("warm"); err != nil {
		return nil, err
	}
	return c.consume, nil
}

// camel is a Camel process that is warm.
type camel struct {
	proc *child.Process
	in   io.WriteCloser
	out  *bufio.Reader
}

// line returns the rest of the next line, which has to begin with word.
func (c *camel) line(word string) (string, error) {
	text, err := c.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("waiting for the Camel process to say %q: %w", word, err)
	}
	rest, found := strings.CutPrefix(strings.TrimSpace(text), word)
	if !found {
		return "", fmt.Errorf("the Camel process said %.100q, not %q", text, word)
	}
	return strings.TrimSpace(rest), nil
}

// consume lets the process consume once more, and takes over what it counted.
func (c *camel) consume(ctx context.Context, _ *Site, r *Run) error {
	stop := context.AfterFunc(ctx, c.proc.Kill)
	defer stop()
	if _, err := io.WriteString(c.in, "go\n"); err != nil {
		return err
	}
	if _, err := c.line("first"); err != nil {
		return err
	}
	r.Begin()
	text, err := c.line("handled")
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return fmt.Errorf("the CPU time of the Camel process: %w", err)
	}
	r.elsewhere(time.Duration(seconds * float64(time.Second)))
	digits, err := c.line("effects")
	if err != nil {
		return err
	}
	if len(digits) != len(r.effects) {
		return fmt.Errorf("the Camel process counted the effects of %d tokens, not %d", len(digits), len(r.effects))
	}
	for i := range digits {
		r.effects[i].Store(uint32(digits[i] - '0'))
	}
	if err := c.in.Close(); err != nil {
		return err
	}
	<-c.proc.Done() // it commits when it ends
	return ctx.Err()
}
