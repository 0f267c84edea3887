package inbox

import (
	"embed"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Dialect is a kind of database.
type Dialect int

// The dialects.
const (
	Postgres Dialect = iota + 1
	MySQL
	SQLite
)

// String is the name of the dialect's files.
func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "postgres"
	case MySQL:
		return "mysql"
	case SQLite:
		return "sqlite"
	}
	return "unknown dialect " + strconv.Itoa(int(d))
}

//go:embed sql
var files embed.FS

// DefaultTables is what the names of the tables begin with.
const DefaultTables = "idemq_"

// tableNames bounds the names: they are written into statements.
var tableNames = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]{0,40}\.)?[A-Za-z_][A-Za-z0-9_]{0,40}$`)

// tables are the tables' names by what they are called in the files.
var tables = []string{"meta", "groups", "records", "leases", "issued", "instances"}

// names replaces {records} and its like. Names of indexes take no schema.
func names(prefix string) *strings.Replacer {
	pairs := []string{"{name}", prefix[strings.IndexByte(prefix, '.')+1:]}
	for _, t := range tables {
		pairs = append(pairs, "{"+t+"}", prefix+t)
	}
	return strings.NewReplacer(pairs...)
}

// Schema is the DDL of a dialect, for tables whose names begin with prefix.
func Schema(d Dialect, prefix string) (string, error) {
	if err := check(d, prefix); err != nil {
		return "", err
	}
	text, err := files.ReadFile("sql/schema_" + d.String() + ".sql")
	if err != nil {
		return "", err
	}
	return names(prefix).Replace(string(text)), nil
}

// check tells what is wrong with a dialect or with the tables' names.
func check(d Dialect, prefix string) error {
	switch {
	case d < Postgres || d > SQLite:
		return fmt.Errorf("there is no %v: it is Postgres, MySQL or SQLite", d)
	case !tableNames.MatchString(prefix):
		return fmt.Errorf("the tables' prefix %q: it must be letters, digits and '_', with a schema and '.' before it or without", prefix)
	case d == SQLite && strings.Contains(prefix, "."):
		return fmt.Errorf("the tables' prefix %q names a schema, and SQLite has none", prefix)
	}
	return nil
}

// split divides text into statements, without their comments.
func split(text string) []string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if i := strings.Index(line, "--"); i >= 0 {
			line = line[:i] + "\n"
		}
		kept.WriteString(line)
	}
	var list []string
	for s := range strings.SplitSeq(kept.String(), ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// statement is a text between values.
type statement struct {
	text   string   // with $1, $2: parametrized
	pieces []string // else one more than values
	values []string // their names
}

// statements are those of a dialect, by name; begin is several.
type statements struct {
	dialect Dialect
	begin   []string
	byName  map[string]statement
}

var valueNames = regexp.MustCompile(`\{[a-z_]+\}`)

// load reads the statements of a dialect.
func load(d Dialect, prefix string) (*statements, error) {
	text, err := files.ReadFile("sql/" + d.String() + ".sql")
	if err != nil {
		return nil, err
	}
	s := &statements{dialect: d, byName: make(map[string]statement)}
	sections := strings.Split(names(prefix).Replace(string(text)), "-- name: ")
	for _, section := range sections[1:] {
		name, body, _ := strings.Cut(section, "\n")
		list := split(body)
		if name == "begin" {
			s.begin = list
			continue
		}
		s.byName[name] = parse(d, strings.Join(strings.Fields(list[0]), " "))
	}
	return s, nil
}

func parse(d Dialect, text string) statement {
	var st statement
	if d == Postgres {
		numbers := make(map[string]string)
		st.text = valueNames.ReplaceAllStringFunc(text, func(name string) string {
			if numbers[name] == "" {
				st.values = append(st.values, name[1:len(name)-1])
				numbers[name] = "$" + strconv.Itoa(len(st.values))
			}
			return numbers[name]
		})
		return st
	}
	at := 0
	for _, m := range valueNames.FindAllStringIndex(text, -1) {
		st.pieces = append(st.pieces, text[at:m[0]])
		st.values = append(st.values, text[m[0]+1:m[1]-1])
		at = m[1]
	}
	st.pieces = append(st.pieces, text[at:])
	return st
}

// values are what a statement is executed with: int64, string for plain text, []byte, nil,
// and under the names "keys" and "rows" a table.
type values map[string]any

// table is rows of values under the names of their columns.
type table struct {
	columns []string
	rows    [][]any
}

// bind is a statement with its values.
func (s *statements) bind(name string, v values) (text string, params []any) {
	st := s.byName[name]
	if s.dialect == Postgres {
		params = make([]any, len(st.values))
		for i, name := range st.values {
			params[i] = param(name, v)
		}
		return st.text, params
	}
	var b strings.Builder
	for i, name := range st.values {
		b.WriteString(st.pieces[i])
		switch v := v[name].(type) {
		case table:
			if name == "keys" {
				v.writeKeys(&b)
			} else {
				v.writeRows(&b)
			}
		default:
			writeLiteral(&b, v)
		}
	}
	b.WriteString(st.pieces[len(st.values)])
	return b.String(), nil
}

// param is a value, or the column of that name as an array.
func param(name string, v values) any {
	if value, ok := v[name]; ok {
		return value
	}
	for _, t := range []string{"keys", "rows"} {
		if t, ok := v[t].(table); ok {
			for i, c := range t.columns {
				if c == name {
					return t.array(i)
				}
			}
		}
	}
	return nil
}

// array is a column as PostgreSQL writes an array.
func (t table) array(column int) string {
	b := append(make([]byte, 0, 16*len(t.rows)), '{')
	for i, row := range t.rows {
		if i > 0 {
			b = append(b, ',')
		}
		switch v := row[column].(type) {
		case int64:
			b = strconv.AppendInt(b, v, 10)
		case string: // plain
			b = append(append(append(b, '"'), v...), '"')
		case []byte:
			b = append(b, `"\\x`...)
			b = append(hex.AppendEncode(b, v), '"')
		default:
			b = append(b, "NULL"...)
		}
	}
	return string(append(b, '}'))
}

// writeKeys writes a condition on gid and token, the first two columns, for rows that
// stand in their order.
func (t table) writeKeys(b *strings.Builder) {
	if len(t.rows) == 0 {
		b.WriteString("1 = 0")
		return
	}
	b.WriteByte('(')
	var gid any
	for i, row := range t.rows {
		switch {
		case i == 0:
		case row[0] == gid:
			b.WriteByte(',')
		default:
			b.WriteString(") OR ")
		}
		if i == 0 || row[0] != gid {
			gid = row[0]
			b.WriteString("gid = ")
			writeLiteral(b, gid)
			b.WriteString(" AND token IN (")
		}
		writeLiteral(b, row[1])
	}
	b.WriteString("))")
}

func (t table) writeRows(b *strings.Builder) {
	for i, row := range t.rows {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte('(')
		for j, v := range row {
			if j > 0 {
				b.WriteByte(',')
			}
			writeLiteral(b, v)
		}
		b.WriteByte(')')
	}
}

// writeLiteral writes a value as MySQL and SQLite read it. No byte of it can end the
// literal: bytes are hexadecimal, and strings are [plain].
func writeLiteral(b *strings.Builder, v any) {
	switch v := v.(type) {
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	case string:
		b.WriteString("'" + v + "'")
	case []byte:
		b.WriteString("X'" + hex.EncodeToString(v) + "'")
	default:
		b.WriteString("NULL")
	}
}

// plain tells whether s needs no quoting anywhere: claim ids do not.
func plain(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
