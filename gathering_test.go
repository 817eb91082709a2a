package locker

// Gathering returns how many writes of the client wait for the one in flight.
func (c *Client) Gathering() (n int) {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	for _, p := range c.group.byName {
		for _, w := range p.writes {
			if !w.left {
				n++
			}
		}
	}
	return n
}
