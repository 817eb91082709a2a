package locker

import "time"

// HedgeAfter sets how long a request may go without an answer before it is hedged. It is called before the
// client is used.
func HedgeAfter(c *Client, d time.Duration) { c.store.HedgeDelay, c.watches.HedgeDelay = d, d }

// SendOneAtATime has a client send one transaction at a time, so that what comes meanwhile gathers. It is called
// before the client is used.
func SendOneAtATime(c *Client) { c.store.InFlight = 1 }

// Lookahead and FarAway are how many predecessors a waiter has that is near, or very far.
const Lookahead, FarAway = lookahead, farAway

// KeepWatchesFor sets how long an unused watch is kept. It is called before the client is used.
func KeepWatchesFor(c *Client, d time.Duration) { c.watches.Idle = d }

// Gathering returns how many writes of the client wait for the one in flight.
func Gathering(c *Client) int { return c.store.Waiting() }

// Waiting returns how many goroutines of the client wait in line behind the one that is in etcd's queue.
func Waiting(c *Client, name string) int { return c.lines.Waiting(name) }

// LogRestarts has a Cache of the client log that it reads again, after each of the refusals; nil is a watch that has
// ended.
func LogRestarts(c *Client, refusals ...error) {
	logged := ""
	for _, refused := range refusals {
		follower{client: c}.logRestart(refused, &logged)
	}
}
