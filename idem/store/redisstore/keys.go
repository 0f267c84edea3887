package redisstore

import (
	"strconv"
	"strings"
)

// The keys of a prefix. Each is
//
//	<prefix>:{<tag>}:<group>:<token>    a record
//	<prefix>:{<tag>}:%<kind>            e epoch, d descriptor (tag 0)
//	<prefix>:{<tag>}:%<kind>:<rest>     i issued token, o incarnation, b bucket
//
// where rest is <number>:<0 or 1> for the sets of a bucket (compact layout), else the
// token or instance name.
//
// Two different records never share a key. In the prefix '%' and '{' are written
// %25 and %7B, so the first '{' of a key is the one before the tag: what stands
// before it is the prefix, and Redis Cluster hashes the tag and nothing else. The
// tag is digits, the kind one letter. In the group '%' and ':' are escaped, so no group
// begins as a kind does, and it ends at the next ':'. The token is last and stands as it
// is. Each part can thus be read back from the key.
//
// Of the records there are many: each character less in their keys saves memory.

var (
	prefixEscapes = strings.NewReplacer("%", "%25", "{", "%7B")
	groupEscapes  = strings.NewReplacer("%", "%25", ":", "%3A")
)

// keys makes the keys of one prefix. It is safe for concurrent use.
type keys struct {
	head string // up to the tag
	hash uint64 // FNV-1a of the prefix and a zero byte
	tags uint64
}

func newKeys(prefix string, tags int) keys {
	return keys{
		head: prefixEscapes.Replace(prefix) + ":{",
		hash: fnv(fnv(fnvOffset, prefix), "\x00"),
		tags: uint64(tags),
	}
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// fnv continues an FNV-1a hash.
func fnv(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * fnvPrime
	}
	return h
}

// tag is the tag of a token, in whatever group: an issued token belongs to all.
func (k *keys) tag(token string) int {
	return int(fnv(k.hash, token) % k.tags)
}

func (k *keys) record(tag int, group, token string) string {
	return string(k.appendRecord(nil, tag, group, token))
}

func (k *keys) appendRecord(b []byte, tag int, group, token string) []byte {
	if strings.ContainsAny(group, "%:") {
		group = groupEscapes.Replace(group)
	}
	b = append(k.appendTag(b, tag), group...)
	return append(append(b, ':'), token...)
}

func (k *keys) issued(tag int, token string) string {
	return string(k.appendIssued(nil, tag, token))
}

func (k *keys) appendIssued(b []byte, tag int, token string) []byte {
	return append(append(k.appendTag(b, tag), "%i:"...), token...)
}

// appendTag appends how all keys of a tag begin.
func (k *keys) appendTag(b []byte, tag int) []byte {
	return append(strconv.AppendInt(append(b, k.head...), int64(tag), 10), "}:"...)
}

// appendBucket appends the key of a bucket's set, of the even (0) or the odd (1) generation.
func (k *keys) appendBucket(b []byte, tag int, n uint64, generation int64) []byte {
	b = strconv.AppendUint(append(k.appendTag(b, tag), "%b:"...), n, 10)
	return strconv.AppendInt(append(b, ':'), generation, 10)
}

func (k *keys) incarnation(name string) string {
	return k.head + strconv.Itoa(k.tag(name)) + "}:%o:" + name
}

func (k *keys) epoch(tag int) string {
	return k.head + strconv.Itoa(tag) + "}:%e"
}

func (k *keys) descriptor() string {
	return k.head + "0}:%d"
}

var patternEscapes = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`)

// pattern is the rule of an ACL that allows all keys of the prefix, and no others.
func (k *keys) pattern() string {
	return "~" + patternEscapes.Replace(k.head) + "*}:*"
}
