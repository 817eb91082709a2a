// Package etcdproc runs etcd as processes of their own, for what an etcd inside the test's process
// cannot show: its real speed, and what becomes of a member that is killed or stopped.
package etcdproc
