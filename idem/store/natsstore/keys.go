package natsstore

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// The keys of a prefix, with a dot between the parts:
//
//	<prefix>.record.<group>.<token>
//	<prefix>.issued.<token>
//	<prefix>.incarnation.<instance name>
//	<prefix>.descriptor
//	<prefix>.proof
//
// Two different records never share a key. Letters, digits, '-', '_' and '/' of a part
// stand as they are; every other byte is '=' and two hexadecimal digits, so that no
// part holds a dot. An empty part is "=". A part that would become longer than maxPart
// is "=sha256-" and the digest of its bytes; an '=' that is followed by an s begins
// nothing else.

const maxPart = 96

func part(s string) string {
	extra := 0
	for i := range len(s) {
		if !plain(s[i]) {
			extra += 2
		}
	}
	switch {
	case s == "":
		return "="
	case len(s)+extra > maxPart:
		sum := sha256.Sum256([]byte(s))
		return "=sha256-" + hex.EncodeToString(sum[:])
	case extra == 0:
		return s
	}
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+extra)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '=', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

// plain tells whether a byte stands in a key as it is.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '/'
}

// keys makes the keys of one prefix.
type keys struct{ prefix string }

func newKeys(prefix string) keys { return keys{prefix: part(prefix)} }

func (k keys) record(group, token string) string {
	return strings.Join([]string{k.prefix, "record", part(group), part(token)}, ".")
}

func (k keys) issued(token string) string     { return k.prefix + ".issued." + part(token) }
func (k keys) incarnation(name string) string { return k.prefix + ".incarnation." + part(name) }
func (k keys) descriptor() string             { return k.prefix + ".descriptor" }
func (k keys) proof() string                  { return k.prefix + ".proof" }
