package locker_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jagregory/locker/v2"
)

func ExampleWithShared() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	for _, reader := range []string{"reader 1", "reader 2"} { // they hold it together
		if _, err := client.Lock(ctx, "catalogue", reader, locker.WithShared()); err != nil {
			log.Fatal(err)
		}
	}
	_, err = client.TryLock(ctx, "catalogue", "writer") // exclusive: it would have to wait for both
	fmt.Println(errors.Is(err, locker.ErrLocked))
	// Output: true
}

func ExampleWithLimit() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	for i := 1; i <= 3; i++ {
		_, err := client.TryLock(ctx, "licences", fmt.Sprint("worker ", i), locker.WithLimit(2))
		fmt.Println("worker", i, "refused:", errors.Is(err, locker.ErrLocked))
	}
	// Output:
	// worker 1 refused: false
	// worker 2 refused: false
	// worker 3 refused: true
}

func ExampleAnd() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	// A transfer between two accounts, by the rates of the day. Another one from b to a, at the
	// same time, cannot deadlock with it.
	lock, err := client.Lock(ctx, "account/a", "transfer 7",
		locker.And("account/b", "transfer 7"),
		locker.And("rates", "transfer 7", locker.WithShared()))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lock.Names())
	if err := lock.Unlock(ctx); err != nil { // all of them, in one transaction
		log.Fatal(err)
	}
	// Output: [account/a account/b rates]
}

func ExampleLock_Names() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	var opts []locker.LockOption // as many names as there are
	for _, shard := range []string{"shard 2", "shard 3"} {
		opts = append(opts, locker.And(shard, "rebalancing"))
	}
	lock, err := client.Lock(context.Background(), "shard 1", "rebalancing", opts...)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(lock.Names()), "names, one token:", lock.Token() > 0)
	// Output: 3 names, one token: true
}

func ExampleWithLockDelay() {
	etcd, stop := startEtcd()
	defer stop()

	// If this program dies while it holds the lock, the disk that it writes to may still have
	// some of its writes to do. The name stays locked for the TTL and five seconds more.
	client, err := locker.New(etcd, locker.WithLockDelay(5*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	lock, err := client.Lock(ctx, "disk", "writer")
	if err != nil {
		log.Fatal(err)
	}
	if err := lock.Unlock(ctx); err != nil { // the name is free at once: nothing is under way
		log.Fatal(err)
	}
	_, err = client.TryLock(ctx, "disk", "next writer")
	fmt.Println(err)
	// Output: <nil>
}

func ExampleClient_Holders() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	for _, address := range []string{"10.1.1.1", "10.1.1.2"} {
		if _, err := client.Lock(ctx, "www.example.com", address, locker.WithShared()); err != nil {
			log.Fatal(err)
		}
	}
	holders, err := client.Holders(ctx, "www.example.com") // the oldest first
	if err != nil {
		log.Fatal(err)
	}
	for _, holder := range holders {
		fmt.Println(holder.Value)
	}
	// Output:
	// 10.1.1.1
	// 10.1.1.2
}

func ExampleCache_Holders() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()
	for _, address := range []string{"10.1.1.1", "10.1.1.2"} {
		if _, err := client.Lock(ctx, "www.example.com", address, locker.WithShared()); err != nil {
			log.Fatal(err)
		}
	}

	cache, err := client.NewCache(ctx, "")
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()
	fmt.Println(len(cache.Holders("www.example.com")), "addresses, without a request")
	// Output: 2 addresses, without a request
}
