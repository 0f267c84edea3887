package torture

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
)

// Sample is what was seen at a time: a line of the samples file.
type Sample struct {
	Seconds float64      `json:"seconds"` // since the beginning
	Redis   *RedisSample `json:"redis,omitempty"`
	Sites   []SiteSample `json:"sites"`
}

// RedisSample is what Redis holds. There is none while it is away.
type RedisSample struct {
	Keys   int64 `json:"keys"`
	Memory int64 `json:"memory"` // bytes
}

// SiteSample is what a site is at.
type SiteSample struct {
	Site      string       `json:"site"`
	Messages  int64        `json:"messages"` // so far
	Backlog   int64        `json:"backlog"`
	Consumers []role.Stats `json:"consumers"`
}

// sample takes samples until the time is over.
func (s *soak) sample(t *testing.T, began time.Time, out *os.File) error {
	ticker := time.NewTicker(s.res.Sampled)
	defer ticker.Stop()
	lines := json.NewEncoder(out)
	told := began
	for time.Since(began) < s.o.Duration {
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			return context.Cause(t.Context())
		}
		if t.Failed() {
			return errors.New("a server did not do what it was told to")
		}
		x := Sample{Seconds: time.Since(began).Seconds(), Redis: s.lookAtRedis(t.Context())}
		for _, site := range s.sites {
			consumers, err := readStats(site.round.Dir, s.res.Sampled)
			if err != nil {
				return err
			}
			pub := site.round.pub
			x.Sites = append(x.Sites, SiteSample{Site: site.Broker.Kind(), Messages: pub.messages.Load(), Backlog: pub.backlog(), Consumers: consumers})
		}
		if err := lines.Encode(x); err != nil {
			return err
		}
		if time.Since(told) > tellEvery {
			told = time.Now()
			t.Log(x.String())
		}
	}
	return nil
}

const tellEvery = 30 * time.Second

// String is a line that tells of progress.
func (x *Sample) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%.0fs:", x.Seconds)
	for _, site := range x.Sites {
		fmt.Fprintf(&b, " %s %d messages, %d behind;", site.Site, site.Messages, site.Backlog)
	}
	if x.Redis == nil {
		b.WriteString(" Redis is away")
	} else {
		fmt.Fprintf(&b, " Redis %d keys, %d MB", x.Redis.Keys, x.Redis.Memory/1e6)
	}
	return b.String()
}

func (s *soak) lookAtRedis(ctx context.Context) *RedisSample {
	ctx, cancel := context.WithTimeout(ctx, s.res.Sampled/2)
	defer cancel()
	keys, err := s.redis.DBSize(ctx).Result()
	if err != nil {
		return nil
	}
	memory, err := s.redis.InfoMap(ctx, "memory").Result()
	if err != nil {
		return nil
	}
	r := &RedisSample{Keys: keys}
	if _, err := fmt.Sscan(memory["Memory"]["used_memory"], &r.Memory); err != nil {
		return nil
	}
	return r
}

// readStats returns the last figures of each consumer that has written some of late.
func readStats(dir string, every time.Duration) (all []role.Stats, err error) {
	files, err := filepath.Glob(filepath.Join(dir, role.StatsFile("*"+history.Suffix)))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || time.Since(info.ModTime()) > every {
			continue // it has ended, or is stopped
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		text = text[:bytes.LastIndexByte(text, '\n')+1]
		text = text[bytes.LastIndexByte(bytes.TrimSuffix(text, []byte("\n")), '\n')+1:]
		var s role.Stats
		if len(text) == 0 || json.Unmarshal(text, &s) != nil {
			continue // its first line is being written
		}
		all = append(all, s)
	}
	return all, nil
}

// ReadSamples reads a samples file.
func ReadSamples(path string) (all []Sample, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := json.NewDecoder(bufio.NewReader(f)); d.More(); {
		var x Sample
		if err := d.Decode(&x); err != nil {
			return nil, fmt.Errorf("%s: sample %d: %w", path, len(all)+1, err)
		}
		all = append(all, x)
	}
	return all, nil
}
