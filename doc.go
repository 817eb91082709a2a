// Package locker provides distributed locks on etcd. A program locks a name with a value;
// other programs read the value, watch it, or wait for the lock.
//
//	etcd, err := clientv3.New(locker.ClientConfig("localhost:2379"))
//	client, err := locker.New(etcd)
//	lock, err := client.Lock(ctx, "www.example.com", "10.1.1.1")
//	defer lock.Unlock(ctx)
//
//	holder, err := client.Get(ctx, "www.example.com") // holder.Value is "10.1.1.1"
//
// Error handling is omitted here; the examples have it.
//
// # Model
//
// Each name has a queue in etcd: the keys below <prefix><name>/. A key in a queue is called
// an entry. It is attached to a lease, which a [Session] of the [Client] renews. The oldest
// entry belongs to the holder: its value is the value of the name, and its create revision
// is the fencing token.
//
// Entries are exclusive, unless [WithShared] or [WithLimit] say otherwise. One rule decides
// who holds: an entry does if no entry of the other kind, shared or not, is ahead of it and,
// unless it is shared, fewer entries are ahead than the smallest limit among its own and
// theirs; an exclusive entry has the limit 1. With [And] a lock has an entry in each of
// several queues, and is held when all of them hold.
//
// A [Lock] is the handle of one hold. Once it has ended, it never holds again:
//
//	               head of the queue             Unlock
//	Lock --> queued ----------------> held ------------------> released: ErrReleased
//	           |                       | lease or entry is gone
//	           |                       +---------------------> lost: *LostError
//	           |                       |         Close
//	           |                       +---------------------> closed: ErrClosed
//	           | ctx ends, lease or entry is gone, or Close
//	           +--> Lock returns an error, and the entry is removed
//
// A Session is a lease and its renewal. When it ends, the contexts of its holds end first,
// and only then is the lease revoked. (An adopted lease is kept, and only what Locker has
// on it is deleted.)
//
//	               renewed every third of the TTL
//	NewSession --> open
//	                |              Close
//	                +-----------------------------> closed --+
//	                |     deadline passed, lease gone        +--> lease revoked (see WithLockDelay)
//	                +-----------------------------> lost ----+
//
// The layout is that of etcd's own concurrency package. Therefore concurrency.Mutex,
// concurrency.Election, "etcdctl lock locker/NAME" and "etcdctl elect locker/NAME" exclude
// Locker and are excluded by it. In a key, a slash in a name is written %2F and a percent
// sign %25: the name "a/b" is locker/a%2Fb there.
//
// # Choosing a verb
//
//   - [Client.Lock] waits for the name and returns the hold.
//   - [Client.TryLock] takes a free name, or reports who holds it.
//   - [Client.Do] runs a function under the lock.
//   - [Client.Campaign] runs it again after each loss, for a role that must always be
//     filled.
//   - [WithShared], [WithLimit] and [And], for any of these, let several hold a name
//     together, or lock several names at once.
//   - [Client.Get], [Client.Holders], [Client.List] and [Client.Owners] read who holds what.
//   - [Client.Watch] and [Client.WatchPrefix] follow it; a [Cache] keeps it in memory.
//   - [Client.Queue] and [Client.Queues] show those who wait as well, and
//     [Client.ForceUnlock] removes one of them, for operators.
//
// # Guarantees
//
// A lock alone cannot stop a holder that was paused: any amount of time may pass between
// its last check of the lock and the effect of what it does next. So let the resource
// decide. If it is in etcd, write through [Lock.Commit], or add [Lock.Guard] to your own
// transactions: etcd refuses them once the hold is over. If it is elsewhere, send
// [Lock.Token] along, and let the resource refuse a token that is smaller than one it has
// seen. Both hold whatever clocks and networks do. ([Lock.Token] has more on tokens of several
// holders.)
//
// Beyond that, as long as the clocks of this machine and of etcd's leader do not drift
// apart by more than the safety margin within one TTL (see [WithSafetyMargin]), the context
// of a hold ends before anybody else can hold the name, and a name whose holder has died is
// free after the TTL.
//
// There is no guarantee that a holder notices at once when somebody deletes its entry or
// revokes its lease by hand: that takes up to a third of the TTL. Nor is there any about
// entries that others made without a lease: they hold until somebody deletes them.
//
// # Contexts and goroutines
//
// A context given to a call bounds that call, never the hold. Every goroutine of the
// package belongs to a Client and has ended when [Client.Close] returns. User code runs in
// the goroutine of its caller, except for some of the functions of [Hooks].
//
// [WithHooks] has functions of the program called when a lock is waited for, held or lost, when a
// lease is renewed, and so on. The modules contrib/otel and contrib/prometheus beside this one
// turn that into traces and metrics.
//
// # Errors
//
// Examine errors with errors.Is and errors.As. An error matches a sentinel of this package
// such as [ErrLost], and has its details in a type such as [*LostError]; or it matches the
// cause of the context that ended the call; or it is etcd's own. In any case etcd's error
// stays in the chain.
package locker
