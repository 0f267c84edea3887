package redisstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/idemq/idemq/idem/store"
	"github.com/idemq/idemq/idem/store/redisstore"
	"github.com/idemq/idemq/internal/redistest"
	"github.com/idemq/idemq/internal/testenv"
)

// smallDisk is a folder on a file system of its own of 4 MB. Only root may make one.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("NOT TESTED: a full disk needs a small file system, which root may mount: %v", err)
	}
	t.Cleanup(func() { // after the server's end
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// The disk of the append-only file is full: Redis refuses to write, the error says what to
// do, what was acknowledged stays, and the store works again when there is room.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, v := range redistest.Versions(t) {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			disk := smallDisk(t)
			server := v.Start(t, "--dir", disk, "--appendonly", "yes", "--auto-aof-rewrite-percentage", "0")
			s := redisstore.New(server.Client(t))
			ctx := context.Background()
			want(t, s, "p", store.Claimed, op(store.Begin, "held", "a"))
			// Leave little room.
			filler := filepath.Join(disk, "filler")
			if err := os.WriteFile(filler, bytes.Repeat([]byte{1}, 3<<20), 0o600); err != nil {
				t.Fatal(err)
			}

			var acked []string
			var err error
			for i := 0; err == nil && i < 10_000; i++ {
				token := fmt.Sprint("token ", i)
				commit := op(store.Commit, token, "a")
				commit.Result = bytes.Repeat([]byte("r"), 16<<10)
				if err = s.Apply(ctx, batch("p", op(store.Begin, token, "a"), commit)); err == nil {
					acked = append(acked, token)
				}
			}
			if err == nil || errors.Is(err, store.ErrUnavailable) || len(acked) == 0 ||
				!strings.Contains(err.Error(), "MISCONF") || !strings.Contains(err.Error(), "whether its disk is full") {
				t.Fatalf("on a full disk, after %d completions: %v", len(acked), err)
			}
			if _, err := s.Verify(ctx, "p"); err == nil || !strings.Contains(err.Error(), "whether its disk is full") {
				t.Errorf("Verify on a full disk: %v", err)
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			commit := batch("p", op(store.Commit, "held", "a"))
			testenv.Await(t, "Redis to write again", func() bool { return s.Apply(ctx, commit) == nil })
			if commit.Replies[0].Status != store.OK {
				t.Errorf("a claim from before: %+v", commit.Replies[0])
			}
			server.Restart()
			t.Logf("%d completions were acknowledged before the disk was full", len(acked))
			for _, token := range append(acked, "held") {
				if rec := inspect(t, s, "p", token); rec.State != store.Done {
					t.Errorf("after a restart, %s is %v", token, rec.State)
				}
			}
		})
	}
}
