package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime/metrics"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"github.com/idemq/idemq/e2e/history"
	"github.com/idemq/idemq/e2e/torture/role"
)

// report appends a line to the statistics now and then, until ctx ends.
func report(ctx context.Context, c role.Config) error {
	f, err := os.OpenFile(role.StatsFile(c.History), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	self, err := process.NewProcess(int32(os.Getpid()))
	if err != nil {
		return err
	}
	out := json.NewEncoder(f)
	ticker := time.NewTicker(c.StatsEvery)
	defer ticker.Stop()
	for {
		s, err := figures(self)
		if err != nil {
			return fmt.Errorf("statistics: %w", err)
		}
		s.Number = c.Number
		if err := out.Encode(s); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func figures(self *process.Process) (s role.Stats, err error) {
	inside := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(inside)
	memory, err := self.MemoryInfo()
	if err != nil {
		return s, err
	}
	open, err := self.NumFDs()
	return role.Stats{
		At: history.Now(), Goroutines: int(inside[0].Value.Uint64()), Heap: int64(inside[1].Value.Uint64()),
		RSS: int64(memory.RSS), Descriptors: int(open) - 1, // but for that of the folder of descriptors
	}, err
}
