package idemamqp

import (
	"testing"

	"pgregory.net/rapid"
)

// An ack for several never takes along what is not settled, nor what is not ours.
func TestAcks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a acks
		last := rapid.SampledFrom([]uint64{0, 0, 0, 1, 7}).Draw(t, "tags before the first")
		owed := map[uint64]bool{} // by the channel, not settled
		foreign := last > 0
		var ours []uint64
		for tag := range last {
			owed[tag+1] = true
		}
		t.Repeat(map[string]func(*rapid.T){
			"accept": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "gap") == 0 {
					last++
					owed[last], foreign = true, true
				}
				last++
				owed[last] = true
				ours = append(ours, last)
				a.accept(last)
			},
			"settle": func(t *rapid.T) {
				if len(ours) > 0 {
					tag := rapid.SampledFrom(ours).Draw(t, "tag")
					a.settle(tag)
					delete(owed, tag)
				}
			},
			"": func(t *rapid.T) {
				upTo := a.upTo()
				for tag := range owed {
					if tag <= upTo {
						t.Fatalf("an ack up to %d takes along %d", upTo, tag)
					}
				}
				if !foreign && upTo < last && !owed[upTo+1] {
					t.Fatalf("an ack goes up to %d, and %d is settled too", upTo, upTo+1)
				}
				if len(a.settled) > 0 && (foreign || a.settled[0]) {
					t.Fatal("it remembers what is of no use")
				}
			},
		})
	})
}
