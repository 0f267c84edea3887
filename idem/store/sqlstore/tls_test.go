package sqlstore_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/idem/store/sqlstore"
	"github.com/idemq/idemq/internal/sqltest"
	"github.com/idemq/idemq/internal/testenv"
)

// The store works over TLS with a server whose certificate is verified, and with no server
// that another authority vouches for.
func TestTLS(t *testing.T) {
	t.Parallel()
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	for _, b := range []struct {
		name, driver string
		dialect      sqlstore.Dialect
		start        func() func(*testenv.Authority) (dsn string)
		encrypted    string // a statement that says so
	}{
		{"PostgreSQL", "pgx", sqlstore.Postgres, func() func(*testenv.Authority) string {
			s := sqltest.StartPostgresTLS(t, "", authority)
			return func(a *testenv.Authority) string {
				u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: s.Addr(), Path: "/postgres"}
				u.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {a.File}}.Encode()
				return u.String()
			}
		}, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"},
		{"MariaDB", "mysql", sqlstore.MySQL, func() func(*testenv.Authority) string {
			s := sqltest.StartMariaDBTLS(t, authority)
			return func(a *testenv.Authority) string {
				name := strings.NewReplacer("/", "-").Replace(a.File)
				if err := mysql.RegisterTLSConfig(name, a.Trusting()); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { mysql.DeregisterTLSConfig(name) })
				return s.DSN() + "?tls=" + name
			}
		}, "SELECT VARIABLE_VALUE <> '' FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'SSL_VERSION'"},
	} {
		t.Run(b.name, func(t *testing.T) {
			dsn := b.start()
			db := open(t, b.driver, dsn(authority))
			var encrypted bool
			if err := db.QueryRowContext(t.Context(), b.encrypted).Scan(&encrypted); err != nil || !encrypted {
				t.Fatalf("encrypted: %v, %v", encrypted, err)
			}
			guard := func(dsn string) *idem.Guard {
				return idem.New(idem.WithStore(sqlstore.New(open(t, b.driver, dsn), b.dialect, sqlstore.WithCreate())))
			}
			nothing := func(context.Context) error { return nil }
			if err := guard(dsn(authority)).Do(t.Context(), "t", nothing); err != nil {
				t.Errorf("over TLS: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := guard(dsn(stranger)).Do(ctx, "t2", func(context.Context) error {
				t.Error("a message was handled by a server that is not trusted")
				return nil
			})
			if err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("a server that is not trusted: got %v, want an error about its certificate", err)
			}
		})
	}
}
