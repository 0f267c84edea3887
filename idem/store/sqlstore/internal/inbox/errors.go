package inbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strconv"
	"strings"

	"github.com/idemq/idemq/idem/store"
)

// kind is what an error means for whoever has to go on.
type kind int

const (
	refused     kind = iota // the database answered, and will answer the same again
	unreachable             // it was not reached, gave no answer, or is about to go away
	busy                    // the transaction was rolled back, and can be tried again at once
	conflict                // a row is there already
	violation               // another constraint
	full                    // there is no room
	missing                 // a table
	denied                  // a right
	readOnly                // it takes no writes
	failed                  // the transaction had failed before
	tooLarge                // the statement is larger than what is taken
)

// code is a database's own: SQLSTATE, or a number. Both are empty where the database did
// not answer.
type code struct {
	state  string
	number int
	text   string // the error's, where the number says little
}

func codeOf(err error) code {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return code{state: state.SQLState()}
	}
	var sqlite interface{ Code() int }
	if errors.As(err, &sqlite) {
		return code{number: sqlite.Code(), text: err.Error()}
	}
	return code{number: mysqlNumber(err)}
}

// mysqlNumber reads the field Number of *mysql.MySQLError, which has no method.
func mysqlNumber(err error) int {
	for ; err != nil; err = errors.Unwrap(err) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				if n := mysqlNumber(e); n != 0 {
					return n
				}
			}
			return 0
		}
		v := reflect.ValueOf(err)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct || v.Elem().Type().Name() != "MySQLError" {
			continue
		}
		if f := v.Elem().FieldByName("Number"); f.CanUint() {
			return int(f.Uint())
		}
	}
	return 0
}

// classify tells what an error of a dialect means.
func classify(d Dialect, err error) kind {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return unreachable
	}
	c := codeOf(err)
	switch {
	case d == Postgres && c.state != "":
		return classifyPostgres(c.state)
	case d == SQLite && c.number != 0:
		return classifySQLite(c)
	case d == MySQL && c.number != 0:
		return classifyMySQL(c.number)
	case strings.Contains(err.Error(), "packet for query is too large"): // go-sql-driver's own
		return tooLarge
	case lostConnection(err):
		return unreachable
	}
	return refused
}

// lostConnection tells whether err says that a connection is gone, or was not to be had.
func lostConnection(err error) bool {
	var netErr net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &netErr) ||
		strings.Contains(err.Error(), "invalid connection") || strings.Contains(err.Error(), "conn closed") ||
		strings.Contains(err.Error(), "bad connection") || strings.Contains(err.Error(), "failed to connect")
}

func classifyPostgres(state string) kind {
	switch state {
	case "40003": // statement_completion_unknown
		return unreachable
	case "55P03", "55006":
		return busy
	case "23505":
		return conflict
	case "42P01", "3F000":
		return missing
	case "42501":
		return denied
	case "25006":
		return readOnly
	case "25P02":
		return failed
	case "54000": // program_limit_exceeded
		return tooLarge
	case "53300": // too_many_connections
		return unreachable
	case "57014", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04":
		return unreachable
	}
	switch state[:2] {
	case "08":
		return unreachable
	case "40":
		return busy
	case "23":
		return violation
	case "53":
		return full
	}
	return refused
}

func classifyMySQL(number int) kind {
	switch number {
	case 1020, 1205, 1213, 1689, 3058, 3101, 3572, 4031:
		return busy
	case 1022, 1062, 1586:
		return conflict
	case 1048, 1216, 1217, 1451, 1452, 3819, 4025:
		return violation
	case 1021, 1041, 1114, 3675:
		return full
	case 1146, 1049:
		return missing
	case 1153, 1301:
		return tooLarge
	case 1044, 1045, 1142, 1143, 1227, 1370:
		return denied
	case 1290, 1792, 1836, 3100:
		return readOnly
	case 1040, 1053, 1077, 1158, 1159, 1160, 1161, 1203, 1317, 1927, 2006, 2013, 3024, 3169, 4119:
		return unreachable
	}
	return refused
}

func classifySQLite(c code) kind {
	switch c.number & 0xff {
	case 5, 6: // SQLITE_BUSY, SQLITE_LOCKED
		return busy
	case 8:
		return readOnly
	case 9: // SQLITE_INTERRUPT
		return unreachable
	case 13:
		return full
	case 14: // SQLITE_CANTOPEN: a folder that went away, too many files
		return unreachable
	case 18: // SQLITE_TOOBIG
		return tooLarge
	case 19:
		if c.number == 1555 || c.number == 2067 { // SQLITE_CONSTRAINT_PRIMARYKEY, _UNIQUE
			return conflict
		}
		return violation
	case 1:
		if strings.Contains(c.text, "no such table") {
			return missing
		}
	}
	return refused
}

// again wraps an error after which the same is tried again, within the context.
type again struct{ err error }

func (e again) Error() string { return e.err.Error() }
func (e again) Unwrap() error { return e.err }

// passes tells whether an error has been marked to pass by trying again.
func passes(err error) bool {
	var a again
	return errors.As(err, &a)
}

// mark marks an error that passes by itself.
func (s *Store) mark(err error) error {
	if err == nil || passes(err) {
		return err
	}
	if k := s.kind(err); k == busy || k == conflict {
		return again{err}
	}
	return err
}

// timedOut tells whether a row was waited for longer than is allowed.
func (s *Store) timedOut(err error) bool {
	switch c := codeOf(err); s.config.Dialect {
	case Postgres:
		return c.state == "55P03"
	case MySQL:
		return c.number == 1205
	}
	return false
}

func (s *Store) kind(err error) kind { return classify(s.config.Dialect, err) }

// creatingTables is what Create does.
const creatingTables = "creating the tables"

// failure says what went wrong while doing what, and what to do. It wraps
// store.ErrUnavailable unless the database answered and will answer the same again: what
// would have passed, with more time, is not an answer.
func (s *Store) failure(doing string, err error) error {
	if err == nil || strings.HasPrefix(err.Error(), s.config.Package+": ") {
		return err
	}
	var cure string
	switch s.kind(err) {
	case unreachable:
		return fmt.Errorf("%s: %s: %w: %w", s.config.Package, doing, store.ErrUnavailable, err)
	case busy, conflict:
		if s.config.Dialect == SQLite {
			return fmt.Errorf("%s: %s: %w: %w (another connection is writing: an open transaction of a handler, or of another program)",
				s.config.Package, doing, store.ErrUnavailable, err)
		}
		return fmt.Errorf("%s: %s: %w: rows that are needed stay locked: %w", s.config.Package, doing, store.ErrUnavailable, err)
	case full:
		return fmt.Errorf("%s: %s: %w: %w (the database has no room: see to its disk)", s.config.Package, doing, store.ErrUnavailable, err)
	case missing:
		cure = fmt.Sprintf("the tables %s... are not in this database or schema: create them with %s.Store's Create, or execute what %s.Schema prints",
			s.config.Tables, s.config.Package, s.config.Package)
		if doing == creatingTables {
			cure = "create the schema, or in MySQL the database, that the tables' prefix " + s.config.Tables + " names"
		}
	case denied:
		cure = "grant the user SELECT, INSERT, UPDATE and DELETE on the tables " + s.config.Tables + "..."
	case readOnly:
		cure = "this server takes no writes: connect to the primary; or, where WithTxOptions makes the handlers' transactions read-only, leave that out"
		if s.config.Dialect == SQLite {
			cure = "the database file or its folder is not writable"
		}
	case tooLarge:
		cure = s.smaller()
	case failed:
		cure = "a statement of the transaction had failed before, and its error was passed over"
	default:
		if passes(err) { // but not in the time that there was
			return fmt.Errorf("%s: %s: %w: %w", s.config.Package, doing, store.ErrUnavailable, err)
		}
		return fmt.Errorf("%s: %s: %w", s.config.Package, doing, err)
	}
	return fmt.Errorf("%s: %s: %w (%s)", s.config.Package, doing, err, cure)
}

// smaller is what to do about a statement that is too large.
func (s *Store) smaller() string {
	if s.config.Dialect == MySQL {
		return "a result counts twice in a statement: give a smaller one, or raise max_allowed_packet, at the server, and maxAllowedPacket in the DSN if it is set"
	}
	return "a result counts twice in a statement: give a smaller one"
}

func plural(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}
