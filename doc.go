// Package locker is a lock service on etcd: a program locks a name with a value;
// others read the value, watch it, or wait their turn.
//
//	etcd, err := clientv3.New(locker.ClientConfig("localhost:2379"))
//	client, err := locker.New(etcd)
//	lock, err := client.Lock(ctx, "www.example.com", "10.1.1.1")
//	defer lock.Unlock(ctx)
//
//	holder, err := client.Get(ctx, "www.example.com") // holder.Value is "10.1.1.1"
//
// # The model
//
// Each name has a queue in etcd: the keys below <prefix><name>/. An entry in it is
// attached to a lease, which a [Session] of the [Client] renews. The oldest entry
// is the holder; its value is the value of the name, and the revision at which it
// was created is its fencing token. A [Lock] is the handle of one hold. It ends by
// [Lock.Unlock], or it is lost: then its context ends, and it is never held again.
//
// The layout is that of etcd's own concurrency package, so that concurrency.Mutex,
// concurrency.Election, "etcdctl lock locker/NAME" and "etcdctl elect
// locker/NAME" exclude Locker and are excluded by it. In a key, a slash of a name
// is written %2F and a percent sign %25: the name "a/b" is locker/a%2Fb there.
//
// # Choosing a verb
//
//   - [Client.Lock] waits its turn and returns the hold.
//   - [Client.TryLock] takes a free name, or says who holds it.
//   - [Client.Do] runs a function under the lock.
//   - [Client.Campaign] runs it again after each loss, for a role that must always
//     be filled.
//   - [Client.Get], [Client.List] and [Client.Owners] read who holds what.
//   - [Client.Watch] and [Client.WatchPrefix] follow it; a [Cache] keeps it in memory.
//
// # What is guaranteed
//
// A lock alone cannot stop a holder that was paused: between its last look at the
// lock and the effect of what it does then, any time may pass. So let the resource
// decide. If it is in etcd, write through [Lock.Commit], or put [Lock.Guard] into
// your own transactions: they are refused once the hold is over. If it is
// elsewhere, send [Lock.Token] along, and let it refuse a smaller one after a
// larger. Both hold whatever clocks and networks do.
//
// Beyond that, as long as the clocks of this machine and of etcd's leader do not
// drift apart by more than the safety margin within one TTL (see
// [WithSafetyMargin]): the context of a hold ends before anybody else can hold the
// name, and a name whose holder has died is free after the TTL.
//
// Not guaranteed: that somebody who deletes entries or revokes leases by hand is
// noticed at once (it takes up to a third of the TTL); anything about entries made
// without a lease, which hold until somebody deletes them.
//
// # Contexts and goroutines
//
// A context given to a call bounds that call, never the hold. Every goroutine of
// the package belongs to a Client and has ended when [Client.Close] returns. User
// code runs in the goroutine of its caller.
//
// # Errors
//
// Every error can be told by errors.Is from the sentinels of this package, carries
// its details in a type for errors.As, matches the cause of a context that ended
// the call, and keeps etcd's own error in the chain.
package locker
