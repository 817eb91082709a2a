package locker

import "time"

// HedgeAfter sets after which time a request without an answer is made once more. It is called before the
// client is used.
func HedgeAfter(c *Client, d time.Duration) { c.store.HedgeDelay, c.watches.HedgeDelay = d, d }

// KeepWatchesFor sets for how long a watch is kept that nobody uses. It is called before the client is used.
func KeepWatchesFor(c *Client, d time.Duration) { c.watches.Idle = d }

// Gathering returns how many writes of the client wait for the one in flight.
func Gathering(c *Client) int { return c.store.Waiting() }

// Waiting returns how many goroutines of the client stand in line behind the one that deals with etcd.
func Waiting(c *Client, name string) int { return c.lines.Waiting(name) }
