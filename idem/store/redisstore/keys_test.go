package redisstore

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// awkward are strings that want to be taken for something else.
var awkward = rapid.OneOf(
	rapid.StringOfN(rapid.SampledFrom([]rune(":{}%25ABD37agioebd0")), 0, 12, -1),
	rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 6), func(b []byte) string { return string(b) }),
)

// named is a key and what it stands for.
type named struct{ prefix, kind, group, token string }

func (n named) key(tags int) string {
	k := newKeys(n.prefix, tags)
	switch n.kind {
	case "g":
		return k.record(k.tag(n.token), n.group, n.token)
	case "i":
		return k.issued(k.tag(n.token), n.token)
	case "o":
		return k.incarnation(n.token)
	case "e":
		return k.epoch(0)
	default:
		return k.descriptor()
	}
}

func TestKeysAreInjective(t *testing.T) {
	draw := func(t *rapid.T, label string) named {
		n := named{prefix: awkward.Draw(t, label+" prefix"), kind: rapid.SampledFrom([]string{"g", "i", "o", "e", "d"}).Draw(t, label+" kind")}
		switch n.kind {
		case "g":
			n.group = awkward.Draw(t, label+" group")
			n.token = awkward.Draw(t, label+" token")
		case "i", "o":
			n.token = awkward.Draw(t, label+" token")
		}
		return n
	}
	rapid.Check(t, func(t *rapid.T) {
		// One tag, so that nothing but the names keeps keys apart.
		a, b := draw(t, "a"), draw(t, "b")
		if a != b && a.key(1) == b.key(1) {
			t.Fatalf("%+v and %+v share the key %q", a, b, a.key(1))
		}
		if got := parseKey(a.key(1)); got != a {
			t.Fatalf("%+v reads back from %q as %+v", a, a.key(1), got)
		}
	})
}

// parseKey reads a key back, as the comment on keys says that it can be.
func parseKey(key string) named {
	head, rest, _ := strings.Cut(key, ":{")
	_, rest, _ = strings.Cut(rest, "}:")
	first, rest, _ := strings.Cut(rest, ":")
	n := named{prefix: strings.NewReplacer("%25", "%", "%7B", "{").Replace(head), token: rest}
	if kind, is := strings.CutPrefix(first, "%"); is && len(kind) == 1 {
		n.kind = kind
	} else {
		n.kind, n.group = "g", strings.NewReplacer("%25", "%", "%3A", ":").Replace(first)
	}
	return n
}

func TestKeysOfATokenShareTheTag(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := newKeys(awkward.Draw(t, "prefix"), rapid.IntRange(1, 100).Draw(t, "tags"))
		token := awkward.Draw(t, "token")
		tag := k.tag(token)
		want := hashTag(k.epoch(tag))
		for _, key := range []string{k.record(tag, awkward.Draw(t, "group"), token), k.issued(tag, token)} {
			if got := hashTag(key); got != want || strings.Trim(got, "0123456789") != "" || got == "" {
				t.Fatalf("Redis Cluster hashes %q of %q, and %q of the epoch key", got, key, want)
			}
		}
	})
}

// hashTag is what Redis Cluster hashes of a key.
func hashTag(key string) string {
	_, rest, open := strings.Cut(key, "{")
	tag, _, closed := strings.Cut(rest, "}")
	if !open || !closed || tag == "" {
		return key
	}
	return tag
}

func TestTagIsTheFNVHashOfPrefixAndToken(t *testing.T) {
	// FNV-1a-64 of "foobar" by its authors' test vectors.
	if got := fnv(fnvOffset, "foobar"); got != 0x85944171f73967e8 {
		t.Fatalf("%x", got)
	}
	k := newKeys("p", 1<<62)
	if got, want := uint64(k.tag("t")), fnv(fnvOffset, "p\x00t")%(1<<62); got != want {
		t.Fatalf("%x, want %x", got, want)
	}
}
