package sqlstore

// MaxConns is how many connections the pool may have open; zero: any number.
func (d *database) MaxConns() int { return d.db.Stats().MaxOpenConnections }
