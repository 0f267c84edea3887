package redisstore

import "time"

// SetClock gives a store another clock of this process.
func SetClock(s *Store, now func() time.Time) { s.now = now }

// Rights are the rules that a user needs, by what for.
func Rights() map[string][]string {
	lists := make(map[string][]string)
	for what, rights := range map[string][]right{"store": storeRights, "cluster": clusterRights, "replicas": replicaRights, "compact": compactRights} {
		for _, r := range rights {
			lists[what] = append(lists[what], r.rule)
		}
	}
	return lists
}

// KeyPattern is the rule that allows the keys of a prefix.
func KeyPattern(prefix string) string {
	k := newKeys(prefix, defaultTags)
	return k.pattern()
}
