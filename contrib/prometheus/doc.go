// Package promlocker makes Prometheus metrics of what a locker.Client does.
//
//	metrics := promlocker.New()
//	prometheus.MustRegister(metrics)
//	client, err := locker.New(etcd, locker.WithHooks(metrics.Hooks()))
//
// Error handling is omitted here.
//
// # Metrics
//
// Histograms; all but the last are in seconds:
//
//   - locker_lock_wait_duration_seconds {error_type, verb}: how long a call waited for a lock. The
//     verb is Lock, TryLock, Do or Campaign; of Do and Campaign only the wait counts.
//   - locker_lock_hold_duration_seconds {end}: how long a lock was held, and how that ended:
//     released, closed (with the Client or the Session), expired, revoked or deleted. The last
//     three are losses, see locker.Reason.
//   - locker_session_renewal_duration_seconds {error_type}: how long etcd took to renew a lease.
//   - locker_session_slack_seconds: how long before the deadline a lease was renewed. At the
//     deadline all locks on the lease would have been lost.
//   - locker_session_slack_ratio: the same as a share of the TTL of the lease. It is about 0.57
//     while etcd answers at once, whatever the TTL is, with the default safety margin.
//
// Gauges:
//
//   - locker_lock_held: locks that are held.
//   - locker_lock_waiting: calls that wait for a lock. A TryLock is one as long as it lasts.
//
// Counters:
//
//   - locker_lock_losses_total {reason}: locks that were lost: expired, revoked or deleted.
//   - locker_watch_resets_total {cause}: how often watches were opened again: disconnect,
//     no answer, compaction, refused or restore, see locker.WatchReset.
//
// Counters exist with the value 0 before there is anything to count, so that rate and increase see
// the first event; those with a label name, from the first call that locks such a name.
//
// # Errors
//
// The label error_type is empty if there was no error, and otherwise one of these:
//
//   - canceled: the context of the call was canceled
//   - deadline: the deadline of the context of the call passed
//   - locked: TryLock was refused
//   - lost: the session was lost, or the entry in the queue was deleted
//   - closed: the Client or the Session was closed
//   - etcd_closed: the etcd client was closed
//   - session_full: the Session of the caller had no room
//   - the name of a gRPC code, such as PermissionDenied: etcd refused
//   - other
package promlocker
