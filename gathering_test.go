package locker

// Gathering returns how many writes of the client wait for the one in flight.
func (c *Client) Gathering() int {
	c.group.mu.Lock()
	defer c.group.mu.Unlock()
	return len(c.group.waiting)
}
