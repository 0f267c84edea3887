package redisstore

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idemq/idemq/idem/store"
)

const (
	// lagging is from how many seconds without a word a replica is called late; a
	// replica reports each second.
	lagging = 10
	// roomy is the part of maxmemory that may be used before it is said, in percent.
	roomy = 90
	// skewed is from when on a clock is called wrong. Nothing that the store decides
	// depends on it (see clockFinding).
	skewed = time.Minute
)

// settings are what CONFIG GET is asked for.
var settings = []any{"save", "appendfsync", "maxmemory-policy", "min-replicas-to-write", "stop-writes-on-bgsave-error"}

// server is what one server says of itself.
type server struct {
	name     string // the beginning of a sentence
	info     map[string]string
	config   map[string]string
	mute     bool // CONFIG GET is not allowed
	replicas int  // that completions wait for
	watched  bool // by Sentinel

	clock          time.Time // zero: not known
	sent, answered time.Time // by this process' clock
}

func parseInfo(text string) map[string]string {
	info := make(map[string]string)
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info
}

// usable is an error if the store cannot work with this server at all.
func (sv *server) usable() error {
	v := sv.info["redis_version"]
	if valkey := sv.info["valkey_version"]; valkey == "" && major(v) < 7 {
		return fmt.Errorf("redisstore: %s is of version %s: the store %s", sv.name, v, needs)
	}
	if sv.info["role"] == "slave" {
		return fmt.Errorf("redisstore: %s is a replica and takes no writes: connect to the primary, "+
			"through Sentinel or a cluster client if it changes", sv.name)
	}
	return nil
}

func major(version string) int {
	s, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(s)
	if err != nil {
		return 7 // not a number that says otherwise
	}
	return n
}

func (sv *server) number(name string) int64 {
	n, _ := strconv.ParseInt(sv.info[name], 10, 64)
	return n
}

// finding is one of this server; what goes on after its name.
func (sv *server) finding(id, what, consequence, cure string) store.Finding {
	return store.Finding{ID: id, What: sv.name + " " + what, Consequence: consequence, Cure: cure}
}

func (sv *server) findings() []store.Finding {
	var all []store.Finding
	all = append(all, sv.memoryFindings()...)
	all = append(all, sv.persistenceFindings()...)
	all = append(all, sv.replicaFindings()...)
	return append(all, sv.clockFinding()...)
}

func (sv *server) infoDenied() store.Finding {
	return sv.finding("redis-info-denied", "does not allow INFO to be asked.",
		"Its version, eviction policy, persistence and replication are not known: it may forget tokens, which can then be handled again.",
		"Give the client's user the right to ask (ACL SETUSER, +info).")
}

func (sv *server) memoryFindings() (found []store.Finding) {
	policy := sv.info["maxmemory_policy"]
	if policy == "" {
		policy = sv.config["maxmemory-policy"]
	}
	limit := sv.number("maxmemory")
	if policy != "" && policy != "noeviction" {
		when := "Once a maxmemory is set and reached"
		if limit > 0 {
			when = fmt.Sprintf("At its maxmemory of %d bytes", limit)
		}
		found = append(found, sv.finding("redis-eviction", fmt.Sprintf("has the eviction policy %s.", policy),
			when+" it forgets tokens, which can then be handled again.", "Set maxmemory-policy to noeviction."))
	}
	used := sv.number("used_memory") - sv.number("mem_not_counted_for_evict")
	if limit > 0 && used*100 > limit*roomy {
		found = append(found, sv.finding("redis-memory", fmt.Sprintf("uses %d of the %d bytes of its maxmemory.", used, limit),
			"At the limit it has no room for new claims, and consumers wait until it has; completions still go through.",
			"Raise maxmemory, or shorten the retention."))
	}
	return found
}

func (sv *server) persistenceFindings() (found []store.Finding) {
	aof := sv.info["aof_enabled"] == "1"
	save := sv.config["save"]
	switch {
	case sv.mute:
		found = append(found, sv.finding("redis-config-denied", "does not allow CONFIG GET to be asked.",
			"Whether it saves its data, how often, and whether it writes without replicas is not known in full: it may forget tokens, which can then be handled again.",
			"Give the client's user the right to ask (ACL SETUSER, +config|get)."))
	case !aof && save == "":
		found = append(found, sv.finding("redis-no-persistence", "saves nothing.",
			"A restart forgets all tokens, which can then be handled again.", "Set appendonly to yes."))
	case !aof:
		found = append(found, sv.finding("redis-snapshots-only", fmt.Sprintf("saves snapshots only (save %q).", save),
			"A crash forgets the tokens since the last snapshot, which can then be handled again.", "Set appendonly to yes."))
	case sv.config["appendfsync"] == "no":
		found = append(found, sv.finding("redis-appendfsync", "has appendfsync no.",
			"A crash of its machine forgets the tokens of up to half a minute, which can then be handled again.",
			"Set appendfsync to everysec or always."))
	}
	if aof && sv.info["aof_last_bgrewrite_status"] == "err" {
		found = append(found, sv.finding("redis-aof-rewrite", "could not rewrite its append-only file the last time it tried.",
			"The file grows until the disk is full, and then Redis takes no writes: consumers wait.",
			"See its log, and make room on its disk."))
	}
	// Where writes are stopped, running the script has failed.
	if save != "" && sv.info["rdb_last_bgsave_status"] == "err" && sv.config["stop-writes-on-bgsave-error"] == "no" {
		found = append(found, sv.finding("redis-save-failing", "could not save its last snapshot, and goes on taking writes.",
			"A crash can forget the tokens since the last snapshot that was saved, which can then be handled again.",
			"See its log, and make room on its disk."))
	}
	return found
}

func (sv *server) replicaFindings() (found []store.Finding) {
	n := int(sv.number("connected_slaves"))
	late := 0
	for i := range n {
		if at, state, lag := sv.replica(i); state != "online" || lag >= lagging {
			late++
			found = append(found, sv.finding("redis-replica-lag", fmt.Sprintf("has a replica, %s, that lags (%s, last heard of %d s ago).", at, state, lag),
				"A failover to it forgets tokens, which can then be handled again.", "See to the replica, its machine and its network."))
		}
	}
	switch {
	case n-late < sv.replicas:
		found = append(found, sv.finding("redis-too-few-replicas",
			fmt.Sprintf("has %d replicas in step, and completions wait for %d (WithReplicas).", n-late, sv.replicas),
			"No completion is confirmed, and no message acknowledged, until that many have it.", "See to the replicas, or lower WithReplicas."))
	case n == 0 && (sv.watched || sv.info["cluster_enabled"] == "1"):
		found = append(found, sv.finding("redis-no-replica", "has no replica.",
			"When it fails nobody takes over: the messages whose tokens it has wait until it is back, and what it did not save is forgotten.",
			"Give each primary a replica."))
	case n > 0 && sv.replicas == 0 && sv.config["min-replicas-to-write"] == "0":
		found = append(found, sv.finding("redis-min-replicas", "has replicas, and takes writes without them (min-replicas-to-write 0).",
			"A failover can forget what was acknowledged, which can then be handled again.",
			"Have completions wait for replicas (WithReplicas), or set min-replicas-to-write."))
	}
	return found
}

func (sv *server) replica(i int) (at, state string, lag int) {
	for part := range strings.SplitSeq(sv.info["slave"+strconv.Itoa(i)], ",") {
		switch k, v, _ := strings.Cut(part, "="); k {
		case "state":
			state = v
		case "lag":
			lag, _ = strconv.Atoi(v)
		case "ip", "port":
			at += ":" + v
		}
	}
	return strings.TrimPrefix(at, ":"), state, lag
}

// clockFinding compares the server's clock with this process'. Claims, leases and
// retentions are counted on the server's clock alone, so its difference from others
// changes nothing in them while it is the primary. It tells where a time crosses from one
// clock to another: a message's age is its producer's clock against the store's, and after
// a failover the deadlines that one server wrote are read by the clock of another.
func (sv *server) clockFinding() []store.Finding {
	if sv.clock.IsZero() {
		return nil
	}
	var off time.Duration // beyond the time that the question took
	word := "ahead of"
	switch {
	case sv.clock.After(sv.answered):
		off = sv.clock.Sub(sv.answered)
	case sv.clock.Before(sv.sent):
		off, word = sv.sent.Sub(sv.clock), "behind"
	}
	if off <= skewed {
		return nil
	}
	return []store.Finding{sv.finding("redis-clock", fmt.Sprintf("has a clock that is %v %s this process'.", off.Round(time.Second), word),
		"A stale message can pass for fresh, or the reverse, and after a failover to a server with another clock leases and retentions end that much too early or late.",
		"Have NTP set the clocks of both machines.")}
}

// clientFinding is about the client: its settings decide how long a call can take.
func (s *Store) clientFinding() (f store.Finding, found bool) {
	var bounded bool
	var read time.Duration
	var retries int
	switch c := s.client.(type) {
	case *redis.Client:
		o := c.Options()
		bounded, read, retries = o.ContextTimeoutEnabled, o.ReadTimeout, o.MaxRetries
	case *redis.ClusterClient:
		o := c.Options()
		bounded, read, retries = o.ContextTimeoutEnabled, o.ReadTimeout, max(o.MaxRetries, o.MaxRedirects)
	case *redis.Ring:
		o := c.Options()
		bounded, read, retries = o.ContextTimeoutEnabled, o.ReadTimeout, o.MaxRetries
	default:
		return f, false
	}
	if bounded {
		return f, false
	}
	limit := "its ReadTimeout"
	if read > 0 {
		limit = read.String()
	}
	return store.Finding{
		ID:   "redis-client-timeout",
		What: "The Redis client does not end a call with its context (ContextTimeoutEnabled is off).",
		Consequence: fmt.Sprintf("It can wait for an answer for %s, %d times, while a lease runs out that is to be renewed: the handler is cancelled, "+
			"and its message handled again.", limit, max(0, retries)+1),
		Cure: "Set ContextTimeoutEnabled in the client's options, and a ReadTimeout below a third of the lease.",
	}, true
}
