package torture

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/idemq/idemq/e2e/checker"
)

func TestReport(t *testing.T) {
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	all := []Result{
		{
			Time: at, Site: "nats/redis", Seed: 7, Seconds: 30, Broker: "NATS 2.15.2", Store: "Redis 7.0.15", Again: "make torture SEED=7 SITE=nats/redis",
			Settings: Settings{"ahead": false, "batch": true}, Together: 4_321,
			Messages: 12_345, Copies: 13_000, Faults: map[string]int{Kill.String(): 4, StoreEmpty.String(): 1}, Effects: 12_350, Takeovers: 11,
			InWindow: map[string]int{checker.Died.String(): 3, checker.Forgotten.String(): 2},
		},
		{
			Time: at.Add(time.Hour), Site: "kafka-group/redis", Seed: 8, Seconds: 30, Broker: "Kafka 4.3.0", Store: "Redis 8.2.1", Again: "make torture SEED=8 SITE=kafka-group/redis",
			Messages: 1_000_000, Copies: 1_100_000, Faults: map[string]int{Kill.String(): 6}, Lost: 1, Failures: []string{"token 3 is lost\nhistory"},
		},
	}
	page := Report(all, []Caught{{Bug: "ack before the completion", What: "too early", Site: "kafka-reader/redis", Seed: 15, Words: "token 9: acked without cause\nhistory", Seconds: 12}})
	narrow := regexp.MustCompile(` +`).ReplaceAllString(page, " ") // tables too
	for _, want := range []string{
		"1,012,345 messages, published 1,113,000 times, 11 faults, 10 of them SIGKILLs of a consumer: **1 lost, 0 doubled outside the named windows**, and 5 doubled in them",
		"**1 of 2 rounds failed.**",
		"2 rounds of 2 seeds between 2026-11-27 12:00:00 and 2026-11-27 13:00:00 UTC",
		"Redis 7.0.15, Redis 8.2.1",
		"token 3 is lost\n",
		"token 9: acked without cause\n",
		"make torture SEED=8 SITE=kafka-group/redis",
		"- **store restart, empty**: ",
		"| working ahead on | 1 | 1,000,000 | 6 | 1 | 0 | 0 |\n", // what says nothing is of before
		"| working ahead off | 1 | 12,345 | 5 | 0 | 5 | 0 |\n",
		"| batches on | 1 | 12,345 | 5 | 0 | 5 | 0 |\n",
		"| batches off | 1 | 1,000,000 | 6 | 1 | 0 | 0 |\n",
		"| Redis, compact layout | 0 | 0 | 0 | 0 | 0 | 0 |\n",
		"up to 32 messages at a time, and 4,321 in all together with others",
		"- The effects of a batch are one for each message, ",
	} {
		if !strings.Contains(narrow, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if kafka, nats := strings.Index(page, "| kafka-group/redis"), strings.Index(page, "| nats/redis"); kafka < 0 || nats < kafka {
		t.Error("sites are not in the order of the brokers")
	}
	const alone = "- Handlers were given one message at a time"
	if strings.Contains(page, alone) || !strings.Contains(Report(all[1:], nil), alone) {
		t.Errorf("%q is not said of the rounds without batches alone", alone)
	}
	if strings.Contains(page, "history\n") {
		t.Error("the page has a token's whole history")
	}
	if page != Report(all, []Caught{{Bug: "ack before the completion", What: "too early", Site: "kafka-reader/redis", Seed: 15, Words: "token 9: acked without cause\nhistory", Seconds: 12}}) {
		t.Error("the same results give another page")
	}
}

func TestPlaces(t *testing.T) {
	for patterns, want := range map[string]int{"": len(brokers) * len(stores), "nats/redis": 1, "kafka-*/redis": 2, "*/sqlite,nats/*": len(brokers) + len(stores) - 1} {
		if got, err := places(patterns); err != nil || len(got) != want {
			t.Errorf("%q: %d sites, %v; want %d", patterns, len(got), err, want)
		}
	}
	for _, patterns := range []string{"kafka", "[", "nats/redis2"} {
		if got, err := places(patterns); err == nil {
			t.Errorf("%q: %v", patterns, got)
		}
	}
}
