package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/idemq/idemq/idem/store"
)

// identity is whose record it is; prefixes are written after the case's own.
type identity struct{ prefix, group, token string }

// apart claims and releases each identity, then claims and commits each: two
// that share a record are found by the attempts.
func (e *env) apart(ids []identity) {
	e.Helper()
	do := func(id identity, op store.Op) store.Reply {
		e.Helper()
		op.Group, op.Token = id.group, id.token
		b := e.batch(op)
		b.Prefix += id.prefix
		return e.apply(b)[0]
	}
	slices.SortFunc(ids, func(a, b identity) int {
		return cmp.Or(strings.Compare(a.prefix, b.prefix), strings.Compare(a.group, b.group), strings.Compare(a.token, b.token))
	})
	ids = slices.Compact(ids)
	for i, id := range ids {
		claim := fmt.Sprintf("c%d", i)
		if r := do(id, begin("", claim)); r.Status != store.Claimed || r.Attempt != 1 {
			e.failf("%q, not seen before, was answered %s with attempt %d and error %v: it shares a record with another of the case",
				id, statusName(r.Status), r.Attempt, r.Err)
		}
		if r := do(id, release("", claim, counted)); r.Status != store.OK {
			e.failf("Release of %q was answered %s", id, statusName(r.Status))
		}
	}
	for _, id := range ids {
		r := do(id, begin("", "again"))
		if r.Status != store.Claimed || r.Attempt != 2 || r.Spent != 1 {
			e.failf("%q was answered %s with attempt %d and spent %d, want Claimed, 2 and 1", id, statusName(r.Status), r.Attempt, r.Spent)
		}
		if r := do(id, commit("", "again", 2)); r.Status != store.OK {
			e.failf("Commit of %q was answered %s", id, statusName(r.Status))
		}
	}
	for _, id := range ids {
		if r := do(id, begin("", "more")); r.Status != store.Duplicate {
			e.failf("%q was answered %s, want Duplicate", id, statusName(r.Status))
		}
	}
}

var nameCases = []testCase{
	{
		"pairs that look alike",
		"Prefix, group and token never run into one another: with a plain separator between them a producer could write a token that is another group's record, and have its message dropped.",
		func(e *env) {
			var ids []identity
			for _, sep := range []string{":", "|", "_", "/", "{", "}", "%", "\x00", "\n", "\xff", "}:", "::", "%3A", "\\", "1:", "-"} {
				ids = append(ids,
					identity{"", "b" + sep + "c", "d"},
					identity{"", "b", "c" + sep + "d"},
					identity{"", "", "b" + sep + "c" + sep + "d"},
					identity{sep + "b", "c", "d"},
					identity{sep + "b" + sep + "c", "", "d"},
					identity{sep, "b" + sep + "c", "d"},
					identity{"", sep + "b" + sep + "c", "d"},
					identity{"", "b" + sep + "c" + sep, "d"},
					identity{"", "b" + sep + "c", sep + "d"},
				)
			}
			e.apart(ids)
		},
	},
	{
		"any bytes",
		"Prefixes, groups and tokens may hold any byte, or be no text at all, and are told apart byte by byte: tokens come from outside.",
		func(e *env) {
			var ids []identity
			for b := range 256 {
				s := string([]byte{byte(b)})
				ids = append(ids, identity{"", group, s}, identity{"", s, "t"}, identity{s, group, "t"})
			}
			for _, s := range []string{
				"{}", "{a}", "}{", "{", "a{b}c", "%s%d%!", "a b", "\r\n", "\x00\x00", "\xff\xfe", "\xc3\x28", "é", "e\u0301", "É",
				"*", "?", "[a]", ">", "a.b", "..", "$", "\\x00", "'", "\"", "a;b", "0", "00", "nil", "group", "t ", " t", "T",
			} {
				ids = append(ids, identity{"", group, s}, identity{"", s, "u"}, identity{s, group, "u"})
			}
			e.apart(ids)
		},
	},
	{
		"long",
		"Tokens of up to 255 bytes are told apart to their last byte.",
		func(e *env) {
			a := strings.Repeat("a", 254)
			raw := strings.Repeat("\xff", 254)
			e.apart([]identity{
				{"", group, a},
				{"", group, a + "a"},
				{"", group, a + "b"},
				{"", group, "b" + a},
				{"", a, a},
				{"", group, raw},
				{"", group, raw + "\xff"},
				{"", group, raw + "\xfe"},
				{"", raw + "\xff", raw},
				{a, group, a},
				{a + "a", group, a},
			})
		},
	},
	{
		"empty group",
		"The empty group is a group like any other, and no other.",
		func(e *env) {
			e.apart([]identity{{"", "", "t"}, {"", group, "t"}, {"", " ", "t"}, {"", "\x00", "t"}, {"", "t", "t"}, {"", "t", "tt"}, {"", "", "tt"}})
		},
	},
	{
		"issued tokens",
		"An issued token is nobody's record, whatever it is called: a registration must not be met by a Begin, nor a record by a Check.",
		func(e *env) {
			tokens := []string{"t", ":t", "issued", "issued:t", "i:t", "i", "group:t", "{t}", "\x00t", "t\x00", "\xff"}
			groups := []string{"", "issued", "i", "issue", "token", "tokens", "group", "t", "\x00"}
			for i, tok := range tokens {
				e.want(store.OK, issue(tok))
				for _, other := range tokens[i+1:] {
					e.want(store.Lost, check(other, "k0"))
				}
				for _, g := range groups {
					e.claims(1, 0, 0, 0, begin(tok, "c1", inGroup(g)))
				}
			}
			for _, tok := range tokens {
				e.want(store.Claimed, check(tok, "k1"))
				e.want(store.Lost, check(tok, "k2"))
				for _, g := range groups {
					e.want(store.InProgress, begin(tok, "c2", inGroup(g)))
				}
			}
		},
	},
	{
		"prefixes",
		"Prefixes share nothing, issued tokens included: two applications on one store must not see each other.",
		func(e *env) {
			other := func(b *store.Batch) { b.Prefix += "x" }
			e.want(store.OK, issue("t"))
			e.want(store.Lost, check("t", "k1"), other)
			e.want(store.Unknown, begin("t", "c1"), other, issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1"), issuedOnly)
			e.claims(1, 0, 0, 0, begin("t", "c1"), other)
			e.want(store.OK, commit("t", "c1", 1))
			e.want(store.InProgress, begin("t", "c2"), other)
			for _, p := range []string{"", "a:b", "\x00\xff{x}"} {
				if _, err := e.s.Incarnation(context.Background(), e.prefix+p, "pod"); err != nil {
					e.failf("Incarnation: %v", err)
				}
			}
		},
	},
}
