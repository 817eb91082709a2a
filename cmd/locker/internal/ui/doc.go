// Package ui serves a page that shows who holds which lock, who waits for it, and for how
// long, while it changes:
//
//	board.go      what is in the queues: looks at etcd, and notes what has changed since
//	lifetimes.go  what is left of leases
//	query.go      which part of it a request asks for
//	rows.go       how that is shown, state.go the same in JSON
//	server.go     the pages and the stream
//	release.go    taking a lock away from its holder
package ui
