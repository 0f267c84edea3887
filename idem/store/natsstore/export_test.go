package natsstore

// RecordKey is the key of a record.
func RecordKey(prefix, group, token string) string { return newKeys(prefix).record(group, token) }

// Remembered is the number of records that a store remembers.
func Remembered(s *Store) int {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	return len(s.memory.keys)
}
