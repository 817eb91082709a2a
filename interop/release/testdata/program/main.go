// The program takes a lock in the etcd at its argument, and prints which modules it has used.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Each module adds what it needs.
var (
	options []locker.Option
	uses    = []func(context.Context, *locker.Client) (string, error){useLocker}
)

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, endpoint string) error {
	etcd, err := clientv3.New(locker.ClientConfig(endpoint))
	if err != nil {
		return err
	}
	defer etcd.Close()
	client, err := locker.New(etcd, options...)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, use := range uses {
		name, err := use(ctx, client)
		if err != nil {
			return err
		}
		fmt.Println(name)
	}
	return nil
}

func useLocker(ctx context.Context, client *locker.Client) (string, error) {
	lock, err := client.Lock(ctx, "www.example.com", "10.1.1.1")
	if err != nil {
		return "", err
	}
	return "locker", lock.Unlock(ctx)
}
