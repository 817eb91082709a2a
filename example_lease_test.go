package locker_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

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
	etcd.Delete(ctx, lock.Key()) // an operator takes the lock away, and nobody told us yet

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

	session, err := client.NewSession(ctx) // what is locked with it is held and lost together
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

	// A transaction of one's own, with conditions of one's own beside the guard.
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
	theirs, err := concurrency.NewSession(etcd) // that the program has for other things
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
	theirs.Orphan() // the program gives its session up, and the lock with it
	<-lock.Context().Done()
	fmt.Println("same lease:", session.Lease() == theirs.Lease(), "- lost:", errors.Is(lock.Err(), locker.ErrLost))
	// Output: same lease: true - lost: true
}
