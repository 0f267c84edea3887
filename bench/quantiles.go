package bench

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Quantiles are what durations come to, in seconds.
type Quantiles struct {
	N    int64   `json:"n"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

// longestKept is the longest duration that a histogram tells from longer ones.
const longestKept = 10 * time.Minute

// histogram counts durations in microseconds, to three digits. It is safe for concurrent use.
type histogram struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

func newHistogram() *histogram {
	return &histogram{h: hdrhistogram.New(1, longestKept.Microseconds(), 3)}
}

func (h *histogram) record(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.h.RecordValue(min(max(d, time.Microsecond), longestKept).Microseconds()) // within its range
}

// merge adds what another has counted, which is in use no more.
func (h *histogram) merge(other *histogram) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.h.Merge(other.h)
}

func (h *histogram) quantiles() Quantiles {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := func(p float64) float64 { return float64(h.h.ValueAtQuantile(p)) / 1e6 }
	return Quantiles{N: h.h.TotalCount(), P50: at(50), P99: at(99), P999: at(99.9), Max: float64(h.h.Max()) / 1e6}
}
