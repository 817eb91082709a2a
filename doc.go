// Package locker is a lock service on etcd.
package locker
