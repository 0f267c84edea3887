package natsstore

// RecordKey is the key of a record.
func RecordKey(prefix, group, token string) string { return newKeys(prefix).record(group, token) }
