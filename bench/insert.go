package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// inserter sends commands to a Redis without waiting for their answers, which is what the
// Redis documentation calls mass insertion. Each command has an answer of one line.
type inserter struct {
	conn net.Conn
	w    *bufio.Writer
	sent int
	read chan answers
	stop func() bool
}

type answers struct {
	n   int
	err error
}

// last is a command whose answer comes after all others.
const last = "+PONG\r\n"

func newInserter(ctx context.Context, addr string) (*inserter, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	ins := &inserter{conn: conn, w: bufio.NewWriterSize(conn, 1<<16), read: make(chan answers, 1)}
	ins.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	go func() {
		a := countAnswers(conn)
		if a.err != nil {
			_ = conn.Close() // whoever writes is not to wait for ever
		}
		ins.read <- a
	}()
	return ins, nil
}

// countAnswers counts until the last one.
func countAnswers(r io.Reader) (a answers) {
	lines := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := lines.ReadString('\n')
		switch {
		case err != nil:
			a.err = fmt.Errorf("after %d answers: %w", a.n, err)
			return a
		case line == last:
			return a
		case line[0] == '-':
			a.err = fmt.Errorf("command %d was refused: %q", a.n+1, line)
			return a
		}
		a.n++
	}
}

// do sends a command.
func (ins *inserter) do(args ...string) error {
	ins.sent++
	return ins.write(args...)
}

func (ins *inserter) write(args ...string) error {
	number := func(mark byte, n int) {
		_ = ins.w.WriteByte(mark)
		_, _ = ins.w.Write(strconv.AppendInt(ins.w.AvailableBuffer(), int64(n), 10))
		_, _ = ins.w.WriteString("\r\n")
	}
	number('*', len(args))
	var err error // a bufio.Writer keeps its first
	for _, a := range args {
		number('$', len(a))
		_, _ = ins.w.WriteString(a)
		_, err = ins.w.WriteString("\r\n")
	}
	return err
}

// errCut: the connection was closed at the end of its context, be it after the last answer.
var errCut = errors.New("the insertion was ended before its time")

// end returns when all commands were executed.
func (ins *inserter) end(failed error) error {
	defer ins.conn.Close()
	err := failed
	if err == nil {
		err = errors.Join(ins.write("PING"), ins.w.Flush())
	}
	if err != nil {
		_ = ins.conn.Close()
	}
	a := <-ins.read
	if a.err == nil && a.n != ins.sent {
		a.err = fmt.Errorf("%d answers to %d commands", a.n, ins.sent)
	}
	if !ins.stop() {
		err = errors.Join(err, errCut)
	}
	return errors.Join(err, a.err)
}
