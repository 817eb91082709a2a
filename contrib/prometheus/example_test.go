package promlocker_test

import (
	"context"
	"fmt"
	"log"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/contrib/prometheus"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// Error handling is in example.
func ExampleNew() {
	if err := example(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output:
	// # HELP locker_lock_held Locks that are held.
	// # TYPE locker_lock_held gauge
	// locker_lock_held 1
}

func example(ctx context.Context) error {
	server, err := embedtest.New() // or an etcd that runs elsewhere
	if err != nil {
		return err
	}
	defer server.Close()
	etcd, err := clientv3.New(locker.ClientConfig(server.Endpoints()...))
	if err != nil {
		return err
	}
	defer etcd.Close()

	metrics := promlocker.New()
	registry := prometheus.NewRegistry() // usually prometheus.DefaultRegisterer
	if err := registry.Register(metrics); err != nil {
		return err
	}
	client, err := locker.New(etcd, locker.WithHooks(metrics.Hooks()))
	if err != nil {
		return err
	}
	defer client.Close()

	lock, err := client.Lock(ctx, "role", "me")
	if err != nil {
		return err
	}
	defer lock.Unlock(ctx)
	text, err := testutil.GatherAndFormat(registry, expfmt.TypeTextPlain, "locker_lock_held")
	if err != nil {
		return err
	}
	fmt.Print(string(text))
	return nil
}
