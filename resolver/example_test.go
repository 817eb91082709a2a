package resolver_test

import (
	"context"
	"fmt"
	"log"
	"net"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	lockerresolver "github.com/jagregory/locker/v2/resolver"
)

// A program that is one of the servers of a name, and a client of that name. It runs an etcd
// in its own process; others would call clientv3.New with the endpoints of their cluster.
func Example() {
	cluster, err := embedtest.New()
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	etcd, err := clientv3.New(cluster.ClientConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer etcd.Close()
	client, err := locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx := context.Background()

	// The server listens, and then locks the name with its address.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	defer server.GracefulStop()
	lock, err := client.Lock(ctx, "billing", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Unlock(ctx)

	// The client connects to whoever holds the name.
	conn, err := grpc.NewClient("locker:///billing",
		grpc.WithResolvers(lockerresolver.NewBuilder(client)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("billing is", answer.GetStatus())
	// Output: billing is SERVING
}
