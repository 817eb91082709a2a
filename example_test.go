package locker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// startEtcd starts an etcd in this process and connects to it; a program would
// call clientv3.New with the endpoints of its cluster.
func startEtcd() (etcd *clientv3.Client, stop func()) {
	server, err := embedtest.New()
	if err != nil {
		log.Fatal(err)
	}
	etcd, err = clientv3.New(server.ClientConfig())
	if err != nil {
		log.Fatal(err)
	}
	return etcd, func() { etcd.Close(); server.Close() }
}

func ExampleNew() {
	etcd, stop := startEtcd()
	defer stop()

	client, err := locker.New(etcd, locker.WithPrefix("shop/locks/"), locker.WithTTL(5*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	lock, err := client.Lock(context.Background(), "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lock.Name(), "is held by", lock.Value())
	// Output: invoices is held by worker 1
}

func ExampleClient_Lock() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "invoices", "worker 1") // waits its turn
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Unlock(ctx)

	select {
	case <-lock.Context().Done(): // pass this context to whatever must stop when the lock is lost
		fmt.Println(context.Cause(lock.Context()))
	default:
		fmt.Println("held")
	}
	// Output: held
}

func ExampleClient_TryLock() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	if _, err := client.TryLock(ctx, "invoices", "worker 1"); err != nil {
		log.Fatal(err)
	}
	_, err = client.TryLock(ctx, "invoices", "worker 2")
	var locked *locker.LockedError
	if errors.As(err, &locked) {
		fmt.Println("held by", locked.Holder.Value)
	}
	// Output: held by worker 1
}

func ExampleClient_Do() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	err = client.Do(context.Background(), "invoices", "worker 1", func(ctx context.Context, lock *locker.Lock) error {
		fmt.Println("sending invoices under", lock.Name()) // until ctx ends
		return nil
	})
	fmt.Println("done:", err)
	// Output:
	// sending invoices under invoices
	// done: <nil>
}

func ExampleClient_Campaign() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithTTL(3*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())

	terms := 0
	err = client.Campaign(ctx, "leader", "10.0.0.1:80", func(ctx context.Context, lock *locker.Lock) error {
		if terms++; terms == 1 {
			etcd.Delete(ctx, lock.Key()) // an operator takes the lock away
		} else {
			cancel() // this program is to stop
		}
		fmt.Println("leading, term", terms)
		<-ctx.Done()
		return ctx.Err()
	})
	fmt.Println("stopped:", err)
	// Output:
	// leading, term 1
	// leading, term 2
	// stopped: context canceled
}

func ExampleClient_Get() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	if _, err := client.Lock(ctx, "db", "10.0.0.1:5432"); err != nil {
		log.Fatal(err)
	}
	holder, err := client.Get(ctx, "db")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the database is at", holder.Value)

	_, err = client.Get(ctx, "mail")
	fmt.Println(err, "/", errors.Is(err, locker.ErrNotFound))
	// Output:
	// the database is at 10.0.0.1:5432
	// locker: get "mail": nobody holds "mail" / true
}

func ExampleClient_List() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	for _, name := range []string{"web/2", "db/1", "web/1"} {
		if _, err := client.Lock(ctx, name, "up"); err != nil {
			log.Fatal(err)
		}
	}
	holders, err := client.List(ctx, "web/")
	if err != nil {
		log.Fatal(err)
	}
	for _, holder := range holders {
		fmt.Println(holder.Name, "is", holder.Value)
	}
	// Output:
	// web/1 is up
	// web/2 is up
}

func ExampleClient_Watch() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "db", "10.0.0.1:5432")
	if err != nil {
		log.Fatal(err)
	}
	for state, err := range client.Watch(ctx, "db") {
		if err != nil {
			log.Fatal(err)
		}
		if !state.Held {
			fmt.Println("the database is gone")
			break
		}
		fmt.Println("the database is at", state.Value)
		lock.Unlock(ctx)
	}
	// Output:
	// the database is at 10.0.0.1:5432
	// the database is gone
}

func ExampleClient_NewCache() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	if _, err := client.Lock(ctx, "web/1", "10.0.0.1:80"); err != nil {
		log.Fatal(err)
	}
	cache, err := client.NewCache(ctx, "web/") // filled when it returns
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()

	holder, held := cache.Get("web/1") // no request
	fmt.Println(holder.Value, held)
	// Output: 10.0.0.1:80 true
}

func ExampleClient_WatchPrefix() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	for _, host := range []string{"eu/web1", "eu/web2", "us/web1"} {
		if _, err := client.Lock(ctx, host, "healthy"); err != nil {
			log.Fatal(err)
		}
	}

	seen := 0
	for state, err := range client.WatchPrefix(ctx, "eu/") { // goes on with each change
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(state.Name, "is", state.Value)
		if seen++; seen == 2 {
			break
		}
	}
	// Output:
	// eu/web1 is healthy
	// eu/web2 is healthy
}

func ExampleClient_Owners() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Lock(ctx, "invoices", "worker 1"); err != nil {
		log.Fatal(err)
	}

	owners, err := client.Owners(ctx)
	if err != nil {
		log.Fatal(err)
	}
	holders, err := client.List(ctx, "")
	if err != nil {
		log.Fatal(err)
	}
	for _, holder := range holders {
		owner := owners[holder.Lease] // with host, program, start and version
		fmt.Println(holder.Name, "is held by this process:", owner.PID == os.Getpid())
	}
	// Output: invoices is held by this process: true
}

func ExampleLock_Commit() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}
	etcd.Delete(ctx, lock.Key()) // an operator takes the lock away, and the holder does not know yet

	_, err = lock.Commit(ctx, clientv3.OpPut("invoices/last", "1042"))
	resp, _ := etcd.Get(ctx, "invoices/last")
	fmt.Println("lost:", errors.Is(err, locker.ErrLost), "written:", resp.Count)
	// Output: lost: true written: 0
}

func ExampleLock_Unlock() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lock.Unlock(ctx))
	fmt.Println(lock.Unlock(ctx))
	// Output:
	// <nil>
	// locker: unlock "invoices": lock released
}

func ExampleClient_NewSession() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	session, err := client.NewSession(ctx) // its locks are held and lost together
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"printer", "scanner"} {
		if _, err := client.Lock(ctx, name, "desk 7", locker.WithSession(session)); err != nil {
			log.Fatal(err)
		}
	}
	session.Close()

	holders, err := client.List(ctx, "")
	fmt.Println(len(holders), "held,", err)
	// Output: 0 held, <nil>
}

func ExampleLock_SetValue() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	lock, err := client.Lock(ctx, "www.example.com", "10.1.1.1")
	if err != nil {
		log.Fatal(err)
	}

	if err := lock.SetValue(ctx, "10.1.1.2"); err != nil { // the hold goes on
		log.Fatal(err)
	}
	holder, err := client.Get(ctx, "www.example.com")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(holder.Value, holder.Token == lock.Token())
	// Output: 10.1.1.2 true
}

func ExampleLock_Guard() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	lock, err := client.Lock(ctx, "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}

	// A transaction of the program, with a condition besides the guard.
	unpaid := clientv3.Compare(clientv3.CreateRevision("/paid/4711"), "=", 0)
	pay := func() bool {
		resp, err := etcd.Txn(ctx).If(append(lock.Guard(), unpaid)...).Then(clientv3.OpPut("/paid/4711", "yes")).Commit()
		if err != nil {
			log.Fatal(err)
		}
		return resp.Succeeded
	}
	fmt.Println("while the lock is held:", pay())
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("afterwards:", pay())
	// Output:
	// while the lock is held: true
	// afterwards: false
}

func ExampleClient_AdoptSession() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	theirs, err := concurrency.NewSession(etcd) // which the program uses for other things too
	if err != nil {
		log.Fatal(err)
	}
	defer theirs.Close()

	session, err := client.AdoptSession(theirs)
	if err != nil {
		log.Fatal(err)
	}
	lock, err := client.Lock(ctx, "invoices", "worker 1", locker.WithSession(session))
	if err != nil {
		log.Fatal(err)
	}
	theirs.Orphan() // the program abandons its session, and with it the lock
	<-lock.Context().Done()
	fmt.Println("same lease:", session.Lease() == theirs.Lease(), "- lost:", errors.Is(lock.Err(), locker.ErrLost))
	// Output: same lease: true - lost: true
}

// The programs of the original's README. The etcd client, which they create elsewhere,
// comes first.

func ExampleNewCompat() {
	etcd, stop := startEtcd()
	defer stop()

	// Create the locker client.
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned := make(chan bool)
	go client.Lock("key", "value", owned, nil)
	<-owned

	fmt.Println(client.Get("key"))
	// Output: value <nil>
}

func ExampleClient_Compat() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithPrefix("shop/locks/"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	old := client.Compat() // for the parts of a program that have not been changed yet
	defer old.Close()

	_, err = old.Get("key")
	_, notFound := err.(locker.LockNotFound)
	fmt.Println(err, notFound)
	// Output: Lock not found: key true
}

// Listening for state changes.
func ExampleCompat_Lock() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned := make(chan bool)
	go client.Lock("key", "value", owned, nil)

	change := <-owned
	fmt.Printf("Do we own the lock? %t", change)
	// Output: Do we own the lock? true
}

// Releasing the lock.
func ExampleCompat_Lock_quit() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned, quit, done := make(chan bool), make(chan bool), make(chan error)
	go func() { done <- client.Lock("key", "value", owned, quit) }()
	fmt.Println("Do we own the lock?", <-owned)

	quit <- true
	fmt.Println("Lock returned:", <-done)

	_, err := client.Get("key")
	fmt.Println(err)
	// Output:
	// Do we own the lock? true
	// Lock returned: <nil>
	// Lock not found: key
}

// Watching a lock.
func ExampleCompat_Watch() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	valueChanges, owned := make(chan string), make(chan bool)
	go client.Watch("key", valueChanges, nil)
	fmt.Printf("Lock value: %q\n", <-valueChanges)

	go client.Lock("key", "value", owned, nil)

	change := <-valueChanges
	fmt.Printf("Lock value changed: %q\n", change)
	// Output:
	// Lock value: ""
	// Lock value changed: "value"
}

// A name server: the hosts lock their names, with their addresses.
func ExampleCompat_nameServer() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()
	redirectRequestsToNewIp := func(ip string) { fmt.Println("requests go to", ip) }

	owned, quit := make(chan bool), make(chan bool)
	go client.Lock("www.example.com", "10.1.1.1", owned, quit)
	<-owned

	ip, err := client.Get("www.example.com")
	fmt.Println("resolved:", ip, err)

	valueChanges := make(chan string)
	go client.Watch("www.example.com", valueChanges, nil)
	redirectRequestsToNewIp(<-valueChanges)

	// Another host waits for the name, and the first one releases it.
	standby := make(chan bool)
	go client.Lock("www.example.com", "10.1.1.2", standby, nil)
	<-standby
	quit <- true

	for newIp := range valueChanges {
		if newIp != "" { // between the two, nobody holds it
			redirectRequestsToNewIp(newIp)
			break
		}
	}
	// Output:
	// resolved: 10.1.1.1 <nil>
	// requests go to 10.1.1.1
	// requests go to 10.1.1.2
}

// Health monitoring: each service locks a record of its own while it is healthy, and
// releases it when it is not, or when a service that it depends on is not.
func ExampleCompat_healthMesh() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	ownedA, quitA, doneA := make(chan bool), make(chan bool), make(chan error)
	ownedB, quitB := make(chan bool), make(chan bool)

	// in service-a
	go func() { doneA <- client.Lock("service-a", "ok", ownedA, quitA) }()
	// in service-b
	go client.Lock("service-b", "ok", ownedB, quitB)
	<-ownedA
	<-ownedB

	// in service-a
	changes := make(chan string)
	go client.Watch("service-b", changes, nil)
	fmt.Println("service-b is", <-changes)

	// in service-b
	quitB <- true

	// in service-a
	if change := <-changes; change == "" {
		fmt.Println("service-b is gone, and service-a goes too")
		quitA <- true
		<-doneA
	}
	_, err := client.Get("service-a")
	fmt.Println(err)
	// Output:
	// service-b is ok
	// service-b is gone, and service-a goes too
	// Lock not found: service-a
}

func ExampleClient_Queue() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithProgram("mailer"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Lock(ctx, "invoices", "worker 1"); err != nil {
		log.Fatal(err)
	}

	queue, err := client.Queue(ctx, "invoices") // holders and waiters, the oldest first
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range queue {
		fmt.Println(entry.Value, "of", entry.Owner.Program, "holds:", entry.Held)
	}
	// Output: worker 1 of mailer holds: true
}

func ExampleClient_Queues() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	for _, name := range []string{"shard/2", "shard/1", "other"} {
		if _, err := client.Lock(ctx, name, "worker 1"); err != nil {
			log.Fatal(err)
		}
	}

	queues, err := client.Queues(ctx, "shard/")
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range queues {
		fmt.Println(entry.Name, entry.Value)
	}
	// Output:
	// shard/1 worker 1
	// shard/2 worker 1
}

func ExampleClient_ForceUnlock() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	lock, err := client.Lock(ctx, "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}

	// An operator has found that worker 1 hangs.
	holder, err := client.Get(ctx, "invoices")
	if err != nil {
		log.Fatal(err)
	}
	removed, err := client.ForceUnlock(ctx, "invoices", holder.Token)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("removed", removed[0].Value)

	_, err = lock.Commit(ctx, clientv3.OpPut("invoices/sent", "42")) // refused from now on
	fmt.Println(errors.Is(err, locker.ErrLost))
	// Output:
	// removed worker 1
	// true
}

func ExampleWithProgram() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithProgram("mailer"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	if _, err := client.Lock(ctx, "invoices", "worker 1"); err != nil {
		log.Fatal(err)
	}

	_, err = client.TryLock(ctx, "invoices", "worker 2")
	var locked *locker.LockedError
	if errors.As(err, &locked) {
		fmt.Println("held by", locked.Owner.Program)
	}
	// Output: held by mailer
}

// A log of calls that lock, and of how holds end.
func ExampleWithHooks() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithHooks(locker.Hooks{
		LockEnd: func(_ context.Context, e locker.LockEnd) {
			switch {
			case e.Err == nil:
				fmt.Println(e.Verb, e.Name, "- held")
			case errors.Is(e.Err, locker.ErrLocked):
				fmt.Println(e.Verb, e.Name, "- somebody else holds it")
			default:
				fmt.Println(e.Verb, e.Name, "-", e.Err)
			}
		},
		HoldEnd: func(e locker.HoldEnd) { fmt.Println("HoldEnd", e.Name, "-", e.Cause) },
	}))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "invoices", "worker 1")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := client.TryLock(ctx, "invoices", "worker 2"); !errors.Is(err, locker.ErrLocked) {
		log.Fatal("not refused: ", err)
	}
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// Lock invoices - held
	// TryLock invoices - somebody else holds it
	// HoldEnd invoices - lock released
}
