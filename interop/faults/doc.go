// Package faults tests Locker while real etcd processes and real client processes are killed, stopped
// and started again. Each test is one row of the table of faults, named in a comment. The clients are
// the test's own program, started once more.
package faults
