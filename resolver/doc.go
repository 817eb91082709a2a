// Package resolver is name resolution for gRPC: a server locks a name with its address as
// the value, and clients connect to whoever holds the name.
//
//	import lockerresolver "github.com/jagregory/locker/v2/resolver"
//
//	conn, err := grpc.NewClient("locker:///billing",
//		grpc.WithResolvers(lockerresolver.NewBuilder(client)), // a *locker.Client
//		grpc.WithTransportCredentials(creds))
//
// The addresses are the values of all present holders, the oldest first. One watch follows
// them, so that a hand-over moves the traffic. It ends with the connection, and while gRPC
// has made that idle.
//
// # Servers
//
// A server listens first and then locks the name, with the host and the port at which
// clients reach it:
//
//	lock, err := client.Lock(ctx, "billing", "10.1.1.1:8080")
//
// One server at a time holds the name, and the others wait for it. Servers that lock with
// WithShared or WithLimit hold it together; gRPC's own policy, pick_first, uses the oldest of
// them, and round_robin uses all:
//
//	grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`)
//
// A server that leaves calls Unlock, goes on serving until its clients have gone, and then
// stops. They go by themselves, as soon as they learn of the next holder. No request is lost
// then, if somebody waits for the name or shares it:
//
//	lock.Unlock(ctx)
//	time.Sleep(2 * time.Second) // or until its connections are closed
//	server.GracefulStop()
//
// Without that pause, a client may hear from the server that it stops before it hears from
// etcd who is next. It then tries the old address again, and requests fail until it hears
// from etcd; those with grpc.WaitForReady wait instead.
//
// A holder that is cut off from etcd loses its traffic with its lock, although it may still
// serve for as long as a client takes to learn of that. Where that matters, let it stop when
// lock.Context ends, or guard what it writes (see Lock.Commit and Lock.Token).
//
// # Names and values
//
// The target locker:///a/b is the name "a/b". Escape other characters as in URLs:
// "locker:///" + url.PathEscape(name) fits every name. With TLS, gRPC expects a certificate
// for the name, unless grpc.WithAuthority says otherwise.
//
// A value is one address, host:port: a host name or an IP address (in brackets if it is
// IPv6), and the number of a port. A value that is empty or anything else is skipped. If that
// leaves no address, the effect is the same as if nobody held the name.
//
// The watch covers all names that begin with NAME, of which only NAME counts. So do not put
// thousands of other names below that of a service. An etcd user needs permission to read all
// keys that begin with those of NAME, locker/NAME by default.
//
// # Failure modes
//
//   - The holder dies: its address is used until its lease has expired, and then that of the
//     next holder.
//   - Nobody holds the name: the last addresses are kept for a second, two at most, in case
//     the next holder is on its way. Then they are withdrawn: their connections are closed
//     once the requests on them have been answered, and others fail with codes.Unavailable
//     and "nobody holds NAME". (round_robin replaces that by a text of its own, "no children
//     to pick from".)
//   - etcd is unreachable: the last addresses stay in use, and the reason is reported to gRPC
//     after about 10 s, or 5 s at the start. Requests fail with it only if there is no
//     connection to any of them. When etcd is back, whatever has changed takes effect.
//   - The watch is interrupted: nothing is missed, not even if etcd has compacted its history
//     meanwhile. If a member of etcd stops answering, another takes its place within 3 s.
//   - etcd refuses, because a permission is missing: as if it were unreachable. The watch is
//     opened again, twice a second, until etcd accepts.
//   - The Client or its etcd client is closed before the connection: that is final. It is
//     noticed within 7 s; then the addresses are withdrawn, and requests fail with ErrClosed
//     or ErrEtcdClosed.
//
// etcd's own resolver, go.etcd.io/etcd/client/v3/naming/resolver, ends its watch for good at
// the first error, such as a compaction, and keeps the addresses that it had then.
package resolver
