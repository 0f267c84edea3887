package bench

import (
	"slices"
	"strings"
	"testing"
)

// What was skipped is not measured, be it a subtest further in.
func TestThrough(t *testing.T) {
	skip := func(t *testing.T) { t.Skip("on purpose") }
	if through(t, "skipped", skip) {
		t.Error("a subtest that was skipped came to its end")
	}
	if through(t, "nested", func(t *testing.T) {
		if !through(t, "skipped", skip) {
			t.SkipNow()
		}
	}) {
		t.Error("what is around it did")
	}
	if !through(t, "whole", func(*testing.T) {}) {
		t.Error("a whole one did not")
	}
}

// A page is not written over by one that lacks sections which it has.
func TestLacking(t *testing.T) {
	dir := t.TempDir()
	all := []string{"a", "b", "c"}
	for _, c := range []struct {
		ran  []string
		ask  []string
		want []string
	}{
		{nil, all, nil},
		{nil, []string{"b"}, []string{"a", "c"}},
		{[]string{"a"}, []string{"b"}, []string{"c"}},
		{[]string{"a", "c"}, []string{"b"}, nil},
	} {
		if c.ran != nil {
			res := &Result{Ran: map[string]Ran{}}
			for _, part := range c.ran {
				res.Ran[part] = Ran{}
			}
			if err := save(dir, RecordsFile, res); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := lacking(dir, RecordsFile, c.ask, all); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v measured, %v asked for: the page lacks %v, %v; want %v", c.ran, c.ask, got, err, c.want)
		}
	}
}

// A part that was measured on another machine says so, and its figures are of that machine's
// threads.
func TestPartsOfAnotherMachine(t *testing.T) {
	res := planted()
	rows := res.Ran[partRows]
	rows.Machine, rows.CPUs = "another", 4
	res.Ran[partRows], res.Ran[partDo] = rows, Ran{Machine: res.hardware(), CPUs: 2, Command: "make bench"}
	page := Page(res)
	for want, is := range map[string]bool{
		"UTC, the library at 0123456789ab, on another\n": true,
		", on some CPU":   false,
		"| 0.80 | 12 % |": true, // of four threads; of two it is 25 %
	} {
		if strings.Contains(page, want) != is {
			t.Errorf("%q on the page: want %t\n%s", want, is, page)
		}
	}
}
