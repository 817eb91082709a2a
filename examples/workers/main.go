// Command workers has ten workers in five instances, of which at most three call a fragile
// backend at one time. When an instance is disconnected from etcd during a call, the call is
// canceled before another worker takes its turn.
//
//	go run ./examples/workers
//	go run ./examples/workers -endpoints 10.0.0.1:2379,10.0.0.2:2379
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

func main() { recipe.Main(run) }

// ttl is the TTL of the leases. The tests use a longer one, for busy machines.
var ttl = 3 * time.Second

const (
	instanceCount = 5
	perInstance   = 2 // workers
)

// run is the demonstration. It returns an error if the backend gets more calls at one time
// than it bears.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	log := log.New(out, "", log.Lmicroseconds)
	d := &demo{log: log, backend: newBackend(log)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.url = "http://" + listener.Addr().String()
	server := &http.Server{Handler: d.backend, ReadHeaderTimeout: time.Minute}
	var serving errgroup.Group
	serving.Go(func() error { return server.Serve(listener) })
	defer func() {
		_ = server.Close()
		_ = serving.Wait() // http.ErrServerClosed
	}()
	d.instances, err = recipe.Start(ctx, endpoints, instanceCount, ttl)
	if err != nil {
		return err
	}
	log.Printf("workers a1 to e2, two in each of five instances, call a backend that bears %d calls at one time", limit)
	err = errors.Join(d.instances.Run(ctx, d.program, d.script), d.instances.Close())
	return errors.Join(err, d.backend.check())
}

type demo struct {
	log       *log.Logger
	backend   *backend
	url       string
	instances *recipe.Instances
}

// program is what each instance does: its workers call the backend over and over.
func (d *demo) program(ctx context.Context, i *recipe.Instance) error {
	g, ctx := errgroup.WithContext(ctx)
	for n := range perInstance {
		g.Go(func() error {
			worker := fmt.Sprint(i.Name, n+1)
			request, err := http.NewRequest(http.MethodPost, d.url+"/"+worker, nil)
			for err == nil && ctx.Err() == nil {
				err = call(ctx, i.Client, worker, request)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		})
	}
	return g.Wait()
}

// script disconnects the instance whose call hangs, until another worker has its turn.
func (d *demo) script(ctx context.Context) error {
	var hung *hangingCall
	select {
	case hung = <-d.backend.hanging:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	network := d.instances.All[hung.worker[0]-'a'].Network
	d.log.Printf("%s  disconnected from etcd", hung.worker)
	network.Cut()
	if err := await(ctx, hung.canceled); err != nil {
		return err
	}
	if err := await(ctx, hung.full); err != nil {
		return err
	}
	d.log.Printf("%d calls are in flight again", limit)
	d.log.Printf("%s  connected again", hung.worker)
	network.Heal()
	if err := await(ctx, hung.repeated); err != nil {
		return err
	}
	d.log.Printf("%s  calls again", hung.worker)
	return nil
}

func await(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
