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

// demoServices are the services of the demonstration, a shop. Payments and orders need
// each other. Admin and search do not cascade: they continue, degraded, when something
// they need is down.
var demoServices = []struct {
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

// demonstration is a mesh in one process. Each service has its own network to etcd, which
// can be cut.
type demonstration struct {
	prefix   string
	services map[string]*demoService // read-only
}

// demoService is a service of the demonstration.
type demoService struct {
	*node
	conn    *connection
	network *embedtest.Proxy

	mu     sync.Mutex // guards faults
	faults faults
}

// faults are the faults injected into a service.
type faults struct {
	Unhealthy bool `json:"unhealthy"`
	CutOff    bool `json:"cutOff"`
}

// newDemonstration prepares the demonstration, with its own prefix in etcd.
func newDemonstration(endpoints []string, ttl, settle time.Duration, out io.Writer) (_ *demonstration, err error) {
	d := &demonstration{
		prefix:   fmt.Sprintf("mesh-demonstration-%08x/", rand.Uint32()),
		services: make(map[string]*demoService),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for i, spec := range demoServices {
		s := &demoService{}
		d.services[spec.name] = s
		if s.network, err = embedtest.NewProxy(endpoints...); err != nil {
			return nil, err
		}
		s.conn = &connection{}
		if s.conn.etcd, err = clientv3.New(s.network.ClientConfig()); err != nil {
			return nil, err
		}
		if s.conn.Client, err = locker.New(s.conn.etcd, locker.WithPrefix(d.prefix), locker.WithTTL(ttl)); err != nil {
			return nil, err
		}
		r := record{Address: fmt.Sprintf("192.0.2.%d:8080", i+1), Needs: spec.needs, Cascade: spec.cascade}
		s.node = newNode(s.conn.Client, spec.name, r, settle, log.New(out, spec.name+": ", log.Ltime|log.Lmsgprefix))
		s.node.health.setResult(nil)
	}
	return d, nil
}

// run runs the services until ctx ends.
func (d *demonstration) run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for _, s := range d.services {
		tasks.Go(func() error { return s.node.run(ctx) })
	}
	tasks.Go(func() error {
		<-ctx.Done()
		for _, s := range d.services {
			s.network.Heal() // so that the service can release its locks
		}
		return nil
	})
	return tasks.Wait()
}

// close releases everything that the services hold.
func (d *demonstration) close() error {
	tasks := errgroup.Group{}
	for _, s := range d.services {
		tasks.Go(s.close)
	}
	return tasks.Wait()
}

func (s *demoService) close() error {
	var errs []error
	if s.conn != nil && s.conn.Client != nil {
		errs = append(errs, s.conn.Client.Close())
	}
	if s.conn != nil && s.conn.etcd != nil {
		errs = append(errs, s.conn.etcd.Close())
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	return errors.Join(errs...)
}

// faultsOf returns the faults of a service, or nil if the service does not belong to the
// demonstration.
func (d *demonstration) faultsOf(name string) *faults {
	s := d.services[name]
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults
	return &f
}

// set injects or removes a fault. It reports whether the service and the fault exist.
func (d *demonstration) set(name, fault string) bool {
	s := d.services[name]
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch fault {
	case "unhealthy":
		s.faults.Unhealthy = true
		s.node.health.setHealthy(false)
	case "healthy":
		s.faults.Unhealthy = false
		s.node.health.setHealthy(true)
	case "cut-off":
		s.faults.CutOff = true
		s.network.Cut()
	case "connected":
		s.faults.CutOff = false
		s.network.Heal()
	default:
		return false
	}
	return true
}
