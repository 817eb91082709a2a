// Package interop tests Locker against real etcd and etcdctl processes. It is a
// module of its own, because it needs the programs' own dependencies.
package interop
