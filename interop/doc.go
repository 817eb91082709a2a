// Package interop tests Locker against etcd and etcdctl as processes: releases from
// 3.4 on, in one member and in three, with TLS and with authentication. It is a
// module of its own, beside what it tests.
package interop
