package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// cast is the demonstration: a shop. Payments and orders need each other, and search
// and admin rather serve badly than not at all.
var cast = []struct {
	name    string
	needs   []string
	cascade bool
}{
	{"accounts", []string{"database"}, true},
	{"admin", []string{"orders", "mail"}, false},
	{"catalogue", []string{"database", "storage"}, true},
	{"database", nil, true},
	{"mail", []string{"queue"}, true},
	{"orders", []string{"payments", "stock"}, true},
	{"payments", []string{"accounts", "orders", "queue"}, true},
	{"queue", nil, true},
	{"search", []string{"catalogue"}, false},
	{"shop", []string{"orders", "search"}, true},
	{"stock", []string{"database", "queue"}, true},
	{"storage", nil, true},
}

// demonstration is a mesh in one process, with a network that can be cut before each of
// its services.
type demonstration struct {
	prefix string
	actors map[string]*actor // does not change
}

// actor is a service of the demonstration.
type actor struct {
	*node
	member  *member
	network *embedtest.Proxy

	mu     sync.Mutex // guards faults
	faults faults
}

// faults are what was broken on purpose.
type faults struct {
	Unhealthy bool `json:"unhealthy"`
	CutOff    bool `json:"cutOff"`
}

// stage prepares the demonstration. It takes a part of etcd of its own.
func stage(endpoints []string, ttl, settle time.Duration, out io.Writer) (_ *demonstration, err error) {
	d := &demonstration{
		prefix: fmt.Sprintf("mesh-demonstration-%08x/", rand.Uint32()),
		actors: make(map[string]*actor),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for i, role := range cast {
		a := &actor{}
		d.actors[role.name] = a
		if a.network, err = embedtest.NewProxy(endpoints...); err != nil {
			return nil, err
		}
		a.member = &member{}
		if a.member.etcd, err = clientv3.New(a.network.ClientConfig()); err != nil {
			return nil, err
		}
		if a.member.Client, err = locker.New(a.member.etcd, locker.WithPrefix(d.prefix), locker.WithTTL(ttl)); err != nil {
			return nil, err
		}
		r := record{Address: fmt.Sprintf("192.0.2.%d:8080", i+1), Needs: role.needs, Cascade: role.cascade}
		a.node = newNode(a.member.Client, role.name, r, settle, log.New(out, role.name+": ", log.Ltime|log.Lmsgprefix))
		a.node.health.found(nil)
	}
	return d, nil
}

// run plays until ctx ends.
func (d *demonstration) run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for _, a := range d.actors {
		tasks.Go(func() error { return a.node.run(ctx) })
	}
	tasks.Go(func() error {
		<-ctx.Done()
		for _, a := range d.actors {
			a.network.Heal() // so that it can give back what it holds
		}
		return nil
	})
	return tasks.Wait()
}

// close leaves nothing behind in etcd.
func (d *demonstration) close() error {
	tasks := errgroup.Group{}
	for _, a := range d.actors {
		tasks.Go(a.close)
	}
	return tasks.Wait()
}

func (a *actor) close() error {
	var errs []error
	if a.member != nil && a.member.Client != nil {
		errs = append(errs, a.member.Client.Close())
	}
	if a.member != nil && a.member.etcd != nil {
		errs = append(errs, a.member.etcd.Close())
	}
	if a.network != nil {
		errs = append(errs, a.network.Close())
	}
	return errors.Join(errs...)
}

// of returns what is broken of a service, nil for one that is not of the demonstration.
func (d *demonstration) of(name string) *faults {
	a := d.actors[name]
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.faults
	return &f
}

// set breaks or mends a service, and reports whether there is such a service and fault.
func (d *demonstration) set(name, fault string) bool {
	a := d.actors[name]
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch fault {
	case "unhealthy":
		a.faults.Unhealthy = true
		a.node.health.turn(false)
	case "healthy":
		a.faults.Unhealthy = false
		a.node.health.turn(true)
	case "cut-off":
		a.faults.CutOff = true
		a.network.Cut()
	case "connected":
		a.faults.CutOff = false
		a.network.Heal()
	default:
		return false
	}
	return true
}
