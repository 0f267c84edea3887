package history_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/idemq/idemq/e2e/history"
)

const childEnv = "IDEM_HISTORY_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		record(path)
	}
	os.Exit(m.Run())
}

// record adds events until it is killed, and says how many there are so far.
func record(path string) {
	r, err := history.Create(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := uint32(1); ; i++ {
		r.Add(history.Event{Kind: history.Effect, Token: i})
		if i%1000 == 0 {
			fmt.Println(i)
		}
	}
}

func TestSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "child.hist")
	began := history.Now()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said uint32
	for lines := bufio.NewScanner(out); lines.Scan(); {
		n, err := strconv.ParseUint(lines.Text(), 10, 32)
		if err != nil {
			t.Errorf("the child said %q", lines.Text())
		}
		if said = uint32(n); said >= 100_000 { // several segments
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	next := uint32(1)
	for e, err := range history.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Token != next || e.Kind != history.Effect {
			t.Fatalf("event %d is %+v", next, e)
		}
		if now := history.Now(); e.At < began || e.At > now {
			t.Fatalf("event %d was at %d by the child's clock, between %d and %d by ours", next, e.At, began, now)
		}
		next++
	}
	if next <= said {
		t.Errorf("%d events are there, of at least %d", next-1, said)
	}
}

func TestEveryField(t *testing.T) {
	dir := t.TempDir()
	want := history.Event{
		At: 1 << 62, Store: -2, Until: 1<<62 + 1, Claim: 1<<63 + 5, Token: 1<<32 - 1, Key: 1<<32 - 2, Seq: 1<<32 - 3,
		Process: 1<<16 - 1, Attempt: 1<<16 - 2, Kind: history.Fault, Op: 255, Status: 254, Flags: history.Failed | history.Counted,
	}
	write(t, filepath.Join(dir, "b.hist"), 0, want)
	write(t, filepath.Join(dir, "a.hist"), 7, history.Event{Kind: history.Started})
	all, err := history.ReadDir(dir)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	if first := all[0]; first.Kind != history.Started || first.Process != 7 || first.At <= 0 || first.At > history.Now() {
		t.Errorf("an event with its blanks filled in: %+v", first)
	}
	if all[1] != want {
		t.Errorf("read %+v, want %+v", all[1], want)
	}
}

func write(t *testing.T, path string, process uint16, events ...history.Event) {
	t.Helper()
	r, err := history.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	r.Process = process
	for _, e := range events {
		r.Add(e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestUnfinishedSlots(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.hist")
	write(t, path, 1, history.Event{Kind: history.Started, Token: 1}, history.Event{Kind: history.Started, Token: 2}, history.Event{Kind: history.Started, Token: 3})
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const slot = 56
	if _, err := f.WriteAt(make([]byte, 8), slot); err != nil { // the word that is written last
		t.Fatal(err)
	}
	var tokens []uint32
	for e, err := range history.Read(path) {
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, e.Token)
	}
	if fmt.Sprint(tokens) != "[1 3]" {
		t.Errorf("tokens %v", tokens)
	}
}

func TestConcurrentAdds(t *testing.T) {
	const writers, each = 8, 20_000
	path := filepath.Join(t.TempDir(), "x.hist")
	r, err := history.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range uint32(writers) {
		wg.Go(func() {
			for i := range uint32(each) {
				r.Add(history.Event{Kind: history.Effect, Token: w*each + i})
			}
		})
	}
	wg.Wait()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.Add(history.Event{Kind: history.Effect}) // too late: no harm
	seen := make([]bool, writers*each)
	for e, err := range history.Read(path) {
		if err != nil || seen[e.Token] {
			t.Fatal(e, err)
		}
		seen[e.Token] = true
	}
	for token, is := range seen {
		if !is {
			t.Fatalf("event %d is missing", token)
		}
	}
}

// A process that records for long stays as small as it is.
func TestMapsLittle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.hist")
	r, err := history.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 200_000 { // several segments
		r.Add(history.Event{Kind: history.Effect})
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(maps), path); n != 1 {
		t.Errorf("%d parts of the file are mapped, want 1", n)
	}
}

func TestCreate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.hist")
	write(t, path, 1)
	if _, err := history.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
}

func TestTokens(t *testing.T) {
	for token, want := range map[string]uint32{history.Token("run", 17): 17, "run-0": 0} {
		if n, ok := history.Number("run", token); n != want || !ok {
			t.Errorf("%s: %d, %v", token, n, ok)
		}
	}
	for _, token := range []string{"run-", "run-x", "other-1", "run-" + strings.Repeat("9", 11)} {
		if n, ok := history.Number("run", token); ok {
			t.Errorf("%s: %d", token, n)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	r, err := history.Create(filepath.Join(b.TempDir(), "x.hist"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := r.Close(); err != nil {
			b.Error(err)
		}
	})
	for b.Loop() {
		r.Add(history.Event{Kind: history.Effect, Token: 1})
	}
}
