package pgxstore

// MaxConns is how many connections the pool may have open.
func (d *database) MaxConns() int { return int(d.pool.Config().MaxConns) }
