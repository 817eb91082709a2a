// Package interop tests Locker against real etcd and etcdctl processes: several releases
// from 3.4 on, with one member and with three, with TLS and with authentication.
package interop
