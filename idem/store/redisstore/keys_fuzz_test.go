package redisstore

import (
	"strings"
	"testing"
)

// FuzzKeys: each part of a key can be read back from it, so no two names share one; a key
// stays in its prefix and its slot, whatever its group and token are.
func FuzzKeys(f *testing.F) {
	f.Add("p", "g", "t", 64)
	f.Add("p:{1}", "g:t", ":%3A", 1)
	f.Add("%7B{%25", "%:", "}:{0}:%d", 3)
	f.Add("", "", "", 16384)
	f.Add("\xff*?[", "\x00", "\n", 0)
	f.Fuzz(func(t *testing.T, prefix, group, token string, tags int) {
		tags = 1 + int(uint(tags)%16384)
		k := newKeys(prefix, tags)
		tag := k.tag(token)
		for _, n := range []named{
			{prefix: prefix, kind: "g", group: group, token: token},
			{prefix: prefix, kind: "i", token: token},
			{prefix: prefix, kind: "o", token: token},
			{prefix: prefix, kind: "e"},
			{prefix: prefix, kind: "d"},
		} {
			key := n.key(tags)
			if got := parseKey(key); got != n {
				t.Fatalf("%+v reads back from %q as %+v", n, key, got)
			}
			if !strings.HasPrefix(key, k.head) || !allowed(k.pattern(), key) {
				t.Fatalf("%q is outside of %q", key, k.pattern())
			}
			slot := hashTag(k.epoch(tag))
			if n.kind == "e" || n.kind == "d" {
				slot = "0"
			}
			if got := hashTag(key); got != slot {
				t.Fatalf("%q is in slot %q, and not in %q", key, got, slot)
			}
		}
		// What another prefix's rule allows is that prefix's.
		if other := newKeys(group, tags); group != prefix && allowed(other.pattern(), k.record(tag, group, token)) {
			t.Fatalf("the rule %q of prefix %q allows %q", other.pattern(), group, k.record(tag, group, token))
		}
	})
}

// allowed tells whether a rule of an ACL allows a key. Its pattern is literal, but for a
// star that stands between what makes up the tag, which is digits.
func allowed(rule, key string) bool {
	head, ok := strings.CutSuffix(rule, `*}:*`)
	literal := strings.NewReplacer(`\\`, `\`, `\*`, `*`, `\?`, `?`, `\[`, `[`, `\]`, `]`).Replace(strings.TrimPrefix(head, "~"))
	rest, in := strings.CutPrefix(key, literal)
	return ok && in && strings.Contains(rest, "}:")
}
