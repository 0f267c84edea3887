package consumers

// change wakes those who wait for something to change. It is guarded by the mutex of what
// changes, and costs nothing while nobody waits.
type change struct{ next chan struct{} }

// wait returns a channel that is closed at the next change.
func (c *change) wait() <-chan struct{} {
	if c.next == nil {
		c.next = make(chan struct{})
	}
	return c.next
}

func (c *change) signal() {
	if c.next != nil {
		close(c.next)
		c.next = nil
	}
}
