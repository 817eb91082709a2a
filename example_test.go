package locker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

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
	case <-lock.Context().Done(): // give this to what must stop when the lock is lost
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
			cancel() // this program is told to stop
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
