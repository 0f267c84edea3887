package memstore

// Len returns how many records are held, expired ones included.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.table.entries)
	if q := len(s.table.idle.es) + len(s.table.held.es); q != n {
		panic("the queues and the map do not hold the same")
	}
	return n
}
