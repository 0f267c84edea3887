package inbox

import "context"

// DB is a database as the inbox uses it: through database/sql, or through pgx.
type DB interface {
	Conn // each statement by itself, on any connection

	// Begin executes statements that begin a transaction, on one connection.
	Begin(ctx context.Context, statements []string) (Tx, error)

	// Open opens a transaction for a handler, within wait. It ends with ctx at the latest.
	Open(ctx, wait context.Context) (Tx, error)
}

// Conn executes statements. Rows have to be closed.
type Conn interface {
	Exec(ctx context.Context, statement string, params ...any) (affected int64, err error)
	Query(ctx context.Context, statement string, params ...any) (Rows, error)
}

// Rows is the part of database/sql's and pgx's rows that is the same.
type Rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// Tx is a transaction on a connection of its own.
type Tx interface {
	Conn
	// Commit answers when ctx ends at the latest.
	Commit(ctx context.Context) error
	// Rollback ends the transaction, if it is open, and gives the connection back.
	Rollback()
}
