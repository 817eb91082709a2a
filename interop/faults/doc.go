// Package faults tests Locker while real etcd processes and real client processes are
// killed, stopped and restarted. The comment of each test names its row in
// docs/faults.md. A client process is another instance of the test program.
package faults
