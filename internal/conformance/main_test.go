package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	doc := write("doc.md", "Before.\n\n"+begin+"old\n"+end+"\nAfter.\n")
	if got := run(dir, doc, false); got != 2 {
		t.Errorf("without reports: exit code %d, want 2", got)
	}
	write("b.json", `{"Name": "B", "Server": "1.0", "Rules": 3, "Passed": 2, "Skipped": 1}`)
	write("a.json", `{"Name": "A", "Server": "2.0", "Rules": 3, "Passed": 3, "Lacks": ["fingerprints"]}`)
	if got := run(dir, doc, true); got != 1 {
		t.Errorf("another table: exit code %d, want 1", got)
	}
	if got := run(dir, doc, false); got != 0 {
		t.Errorf("writing: exit code %d, want 0", got)
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Before.\n", "| A | 2.0 | 3 of 3 |  | fingerprints |\n| B | 1.0 | 2 of 3 | 1 |  |\n", "\nAfter.\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	write("b.json", `{"Name": "B", "Server": "1.1", "Rules": 3, "Passed": 2, "Skipped": 1}`)
	if got := run(dir, doc, true); got != 0 {
		t.Errorf("a newer version: exit code %d, want 0", got)
	}
	write("b.json", `{"Name": "B", "Server": "1.1", "Rules": 4, "Passed": 4}`)
	if got := run(dir, doc, true); got != 1 {
		t.Errorf("other rules: exit code %d, want 1", got)
	}
	write("b.json", `{"Name": "B", "Server": "1.1", "Rules": 4, "Passed": 3, "Failed": ["TestStore/Begin/absent"]}`)
	if got := run(dir, doc, false); got != 1 {
		t.Errorf("a broken rule: exit code %d, want 1", got)
	}
	if got := run(dir, write("none.md", "nothing"), false); got != 1 && got != 2 {
		t.Errorf("no place: exit code %d", got)
	}
}
