package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

// ttl is the TTL of the leases. The tests use a longer one, for busy machines.
var ttl = 3 * time.Second

// run is the demonstration. It returns an error if two instances lead at one time, and at
// the first answer that is not what it should be.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	instances, err := recipe.Start(ctx, endpoints, 2, ttl)
	if err != nil {
		return err
	}
	d := &demo{log: log.New(out, "", log.Lmicroseconds), led: make(chan hold)}
	d.log.Print("a and b are instances of an HTTP service; the one that holds a lock leads")
	err = errors.Join(instances.Run(ctx, d.program, d.script), instances.Close())
	if d.overlaps.Load() {
		return errors.New("two instances led at one time")
	}
	if err == nil {
		d.log.Print("no two instances led at one time")
	}
	return err
}

type demo struct {
	log      *log.Logger
	led      chan hold
	leading  atomic.Int32
	overlaps atomic.Bool
}

// A hold is a time during which an instance leads, until ctx ends.
type hold struct {
	ctx      context.Context
	stopped  chan struct{} // closed when it has stopped leading
	instance *recipe.Instance
	address  string
	sigterm  func() // what the signal would do, which would end both instances
}

// program is what each instance does.
func (d *demo) program(ctx context.Context, i *recipe.Instance) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	sigterm := func() { stop(errors.New("SIGTERM")) }
	lead := func(ctx context.Context, lock *locker.Lock) error {
		if d.leading.Add(1) > 1 {
			d.overlaps.Store(true)
		}
		stopped := make(chan struct{})
		defer close(stopped)
		defer d.leading.Add(-1)
		d.log.Printf("%s  leads (token %d)", i.Name, lock.Token())
		select {
		case d.led <- hold{ctx, stopped, i, listener.Addr().String(), sigterm}:
		case <-ctx.Done():
		}
		<-ctx.Done()
		d.log.Printf("%s  stops leading: %v", i.Name, context.Cause(ctx))
		return nil
	}
	s := &service{i.Name, i.Client, listener, http.NewServeMux(), lead}
	err = s.run(ctx)
	d.log.Printf("%s  has ended", i.Name)
	return err
}

// script stops the first leader and disconnects the second, which is alone then, and leads
// again when it is connected.
func (d *demo) script(ctx context.Context) error {
	first, err := d.next(ctx)
	if err != nil {
		return err
	}
	d.log.Printf("%s  SIGTERM", first.instance.Name)
	first.sigterm()
	second, err := d.next(ctx)
	for err == nil && second.instance == first.instance {
		second, err = d.next(ctx)
	}
	if err != nil {
		return err
	}
	if err := d.askLeader(ctx, second, http.StatusOK); err != nil && second.ctx.Err() == nil {
		return err
	}
	d.log.Printf("%s  disconnected from etcd", second.instance.Name)
	second.instance.Network.Cut()
	<-second.stopped // at the latest with ctx
	if err := d.askLeader(ctx, second, http.StatusServiceUnavailable); err != nil {
		return err
	}
	d.log.Printf("%s  connected again", second.instance.Name)
	second.instance.Network.Heal()
	_, err = d.next(ctx)
	return err
}

// next waits until an instance leads.
func (d *demo) next(ctx context.Context) (hold, error) {
	select {
	case h := <-d.led:
		return h, nil
	case <-ctx.Done():
		return hold{}, context.Cause(ctx)
	}
}

// askLeader asks an instance whether it leads, and checks the status of the answer.
func (d *demo) askLeader(ctx context.Context, h hold, want int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.address+"/leader", nil)
	if err != nil {
		return err
	}
	req.Close = true // leaves no connection open
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("/leader of %s: %s, want %d", h.instance.Name, resp.Status, want)
	}
	d.log.Printf("%s  answers /leader with %s: %s", h.instance.Name, resp.Status, strings.TrimSpace(string(body)))
	return err
}
