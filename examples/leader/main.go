// Command leader is an HTTP service of which one instance leads, and which stops without a
// gap: at SIGTERM the leader stops its work, lets the next one lead, answers the requests
// that it has, and only then ends.
//
//	go run ./examples/leader                  # a demonstration with two instances
//	go run ./examples/leader -listen localhost:8080 -endpoints 10.0.0.1:2379,10.0.0.2:2379
//	curl -i localhost:8080/leader             # 200 if that instance leads, otherwise 503
package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"log"
	"net"
	"net/http"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

func main() {
	listen := flag.String("listen", "", "`address` of one instance that runs until SIGTERM, with -endpoints; without it, two demonstrate what they do")
	recipe.Main(func(ctx context.Context, out io.Writer, endpoints []string) error {
		if *listen == "" {
			return run(ctx, out, endpoints)
		}
		return serve(ctx, log.New(out, "", log.Lmicroseconds), *listen, endpoints)
	})
}

// serve runs one instance until ctx ends.
func serve(ctx context.Context, log *log.Logger, address string, endpoints []string) (err error) {
	if len(endpoints) == 0 {
		return errors.New("-listen needs -endpoints as well")
	}
	etcd, err := clientv3.New(locker.ClientConfig(endpoints...))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.Close()) }()
	client, err := locker.New(etcd)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	log.Printf("serving on %s", listener.Addr())
	s := &service{name: listener.Addr().String(), client: client, listener: listener, routes: http.NewServeMux()}
	s.lead = func(ctx context.Context, lock *locker.Lock) error {
		log.Printf("leading (token %d)", lock.Token())
		<-ctx.Done() // the work of a leader would be here
		log.Printf("not leading any more: %v", context.Cause(ctx))
		return nil
	}
	return s.run(ctx)
}
