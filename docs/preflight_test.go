package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A row of a finding: its ID, what, consequence, cure.
var findingRow = regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|(.*)\\|(.*)\\|(.*)\\|$")

// Every finding in the sources has its row, and every row its finding.
func TestFindingsAreListed(t *testing.T) {
	text, err := os.ReadFile("preflight.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, row := range findingRow.FindAllStringSubmatch(string(text), -1) {
		if listed[row[1]] {
			t.Errorf("%s has two rows", row[1])
		}
		listed[row[1]] = true
		for i, cell := range row[2:] {
			if cell = strings.TrimSpace(cell); !strings.HasSuffix(cell, ".") {
				t.Errorf("%s, column %d: %q is no sentence", row[1], i+2, cell)
			}
		}
	}
	inSources := map[string]string{}
	for _, tree := range []string{"../idem", "../consumers"} {
		err := filepath.WalkDir(tree, func(dir string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && !strings.HasSuffix(dir, "test") {
				for _, id := range findingIDs(t, dir) {
					inSources[id] = dir
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(inSources) < 20 {
		t.Errorf("only %d findings in the sources: %v", len(inSources), inSources)
	}
	for _, id := range slices.Sorted(maps.Keys(inSources)) {
		if !listed[id] {
			t.Errorf("docs/preflight.md has no row for %s of %s", id, inSources[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(listed)) {
		if inSources[id] == "" {
			t.Errorf("docs/preflight.md has a row for %s, which nothing finds", id)
		}
	}
}

// findingIDs lists the IDs of the findings that a package makes: those in literals of type
// Finding, and, where a function makes them of a parameter, those that it is called with.
func findingIDs(t *testing.T, dir string) (ids []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	take := func(e ast.Expr, what string) {
		lit, ok := e.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			t.Errorf("%s: the ID of %s cannot be read: write it as a string", fset.Position(e.Pos()), what)
			return
		}
		id, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	makers := map[string]int{} // of findings, and which parameter is the ID
	for _, f := range files {
		var within []ast.Node
		ast.Inspect(f, func(n ast.Node) bool {
			if n == nil {
				within = within[:len(within)-1]
				return true
			}
			within = append(within, n)
			lit, ok := n.(*ast.CompositeLit)
			if !ok || !isFinding(lit.Type, within) {
				return true
			}
			id := idOf(lit)
			if id == nil {
				return true // nothing, or made elsewhere
			}
			if name, ok := id.(*ast.Ident); ok {
				if maker, i, found := makerOf(within, name.Name); found {
					makers[maker] = i
					return true
				}
			}
			take(id, "this finding")
			return true
		})
		if len(within) != 0 {
			t.Fatal("unbalanced")
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if i, found := makers[nameOf(call.Fun)]; found && i < len(call.Args) {
				take(call.Args[i], fmt.Sprintf("a finding of %s", nameOf(call.Fun)))
			}
			return true
		})
	}
	return ids
}

// isFinding reports whether a literal is a Finding, be it an element of a list of them.
func isFinding(typ ast.Expr, within []ast.Node) bool {
	if typ == nil {
		if list, ok := within[len(within)-2].(*ast.CompositeLit); ok {
			if array, ok := list.Type.(*ast.ArrayType); ok {
				typ = array.Elt
			}
		}
	}
	return nameOf(typ) == "Finding"
}

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// idOf returns the ID in a literal, if it has one.
func idOf(lit *ast.CompositeLit) ast.Expr {
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok && nameOf(kv.Key) == "ID" {
			return kv.Value
		}
	}
	return nil
}

// makerOf finds the innermost function with a parameter of this name, what it is called
// by, and which parameter that is.
func makerOf(within []ast.Node, param string) (name string, i int, found bool) {
	for at, n := range slices.Backward(within) {
		var typ *ast.FuncType
		switch n := n.(type) {
		case *ast.FuncDecl:
			name, typ = n.Name.Name, n.Type
		case *ast.FuncLit:
			if assign, ok := within[at-1].(*ast.AssignStmt); ok && len(assign.Lhs) == 1 {
				name = nameOf(assign.Lhs[0])
			}
			typ = n.Type
		default:
			continue
		}
		i := 0
		for _, field := range typ.Params.List {
			for _, p := range field.Names {
				if p.Name == param && name != "" {
					return name, i, true
				}
				i++
			}
		}
	}
	return "", 0, false
}
