package idem

// Yields has f called where a flight lets others run before it takes what is queued.
func (g *Guard) Yields(f func()) { g.core.batcher.yield = f }
