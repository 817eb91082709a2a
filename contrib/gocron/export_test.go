package gocronlocker

// ErrTooSoon is why an Elector that has just taken its name does not lead yet.
var ErrTooSoon = errTooSoon
