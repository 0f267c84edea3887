package inbox

import (
	"context"

	"github.com/idemq/idemq/idem/store"
)

// Verify implements store.Store.
func (s *Store) Verify(ctx context.Context) ([]store.Finding, error) {
	if s.err != nil {
		return nil, s.err
	}
	if _, err := s.readMeta(ctx); err != nil {
		return nil, s.failure("looking at the schema", err)
	}
	return nil, nil
}
