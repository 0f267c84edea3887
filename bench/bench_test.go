package bench

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	ServeNATS()
	os.Exit(m.Run())
}

// testMessages are enough to be read in several fetches and committed more than once.
const testMessages = 2000

// Every row in Go handles all of its work, and only rows without deduplication handle copies.
func TestRows(t *testing.T) {
	w, err := NewWork(testMessages, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range Brokers() {
		t.Run(b.Name, func(t *testing.T) {
			l := newLab(t, b)
			for _, row := range b.Rows {
				if row.warm != nil {
					continue // a peer that is not Go, and takes long to build
				}
				t.Run(row.Name, func(t *testing.T) {
					rec := l.measure(t, row, w, 1)
					if rec.Failed != "" {
						t.Fatal(rec.Failed)
					}
					want := 0
					if row.Repeats {
						want = w.Messages() - w.Distinct()
					}
					if rec.Missing != 0 || rec.Doubled != want {
						t.Errorf("%d tokens without an effect and %d effects too many, want 0 and %d", rec.Missing, rec.Doubled, want)
					}
					t.Logf("%+v", rec)
				})
			}
		})
	}
}
