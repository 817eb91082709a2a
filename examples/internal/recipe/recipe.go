// Package recipe has what the examples of docs/recipes.md share: the command line, and
// several instances of a program in one process, each with a client and a network of its
// own.
package recipe

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// Main parses the command line, to which it adds the flag -endpoints, and calls run with a
// context that ends at an interrupt or at SIGTERM. It ends the process: with 0 if run
// returns nil, and otherwise with 1 and the error.
func Main(run func(ctx context.Context, out io.Writer, endpoints []string) error) {
	list := flag.String("endpoints", "", "comma-separated `addresses` of an etcd cluster; by default, etcd runs inside this program")
	flag.Parse()
	name := filepath.Base(os.Args[0])
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%s: unknown argument %q\n", name, flag.Arg(0))
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	if err := run(ctx, os.Stdout, strings.FieldsFunc(*list, func(r rune) bool { return r == ',' || r == ' ' })); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// An Instance is one of several that run the same program.
type Instance struct {
	Name    string           // "a", "b" and so on
	Client  *locker.Client   // may be closed before the Instances are
	Network *embedtest.Proxy // between Client and etcd

	etcd *clientv3.Client
}

// Instances are several of them on one cluster.
type Instances struct {
	All []*Instance

	server   *embedtest.Server // nil if the cluster runs elsewhere
	answered bool              // by etcd
}

// Start starts n instances, whose leases have the given TTL and whose contexts end a third
// of it early. Without endpoints it starts an etcd for them. It blocks until etcd has
// answered, at most for 5 s or until ctx ends. After an error nothing is left running.
func Start(ctx context.Context, endpoints []string, n int, ttl time.Duration) (_ *Instances, err error) {
	s := &Instances{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if len(endpoints) == 0 {
		if s.server, err = embedtest.New(); err != nil {
			return nil, err
		}
		endpoints = s.server.Endpoints()
	}
	prefix := fmt.Sprintf("locker-example-%08x/", rand.Uint32()) // different for each run
	for i := range n {
		instance := &Instance{Name: string(rune('a' + i))}
		s.All = append(s.All, instance)
		if err = instance.connect(endpoints, locker.WithPrefix(prefix), locker.WithTTL(ttl), locker.WithSafetyMargin(ttl/3)); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("etcd does not answer"))
	defer cancel()
	for _, instance := range s.All {
		if _, err := instance.Client.List(ctx, ""); err != nil {
			return nil, err
		}
	}
	s.answered = true
	return s, nil
}

func (i *Instance) connect(endpoints []string, opts ...locker.Option) (err error) {
	if i.Network, err = embedtest.NewProxy(endpoints...); err != nil {
		return err
	}
	if i.etcd, err = clientv3.New(locker.ClientConfig(i.Network.Endpoints()...)); err != nil {
		return err
	}
	i.Client, err = locker.New(i.etcd, opts...)
	return err
}

// errOver ends the programs of a demonstration.
var errOver = errors.New("the demonstration is over")

// Run calls program for each instance, and script beside them. When script returns, the
// context of the programs ends. Run blocks until all have returned, and returns the first
// error. All of it is bounded by ctx and by five minutes.
func (s *Instances) Run(ctx context.Context, program func(context.Context, *Instance) error, script func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancelCause(ctx)
	for _, i := range s.All {
		g.Go(func() error {
			if err := program(ctx, i); !errors.Is(err, errOver) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		defer stop(errOver)
		return script(ctx)
	})
	return g.Wait()
}

// Close heals the networks, and closes all clients and the cluster. It blocks until the
// clients are connected again, at most for 30 s, and then as the Close of a Client does.
func (s *Instances) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, i := range s.All {
		if s.answered {
			i.Network.Heal()
			_, _ = i.Client.List(ctx, "") // so that Close can revoke the lease
		}
	}
	var errs []error
	for _, i := range s.All {
		if i.Client != nil {
			errs = append(errs, i.Client.Close())
		}
		if i.etcd != nil {
			errs = append(errs, i.etcd.Close())
		}
		if i.Network != nil {
			errs = append(errs, i.Network.Close())
		}
	}
	if s.server != nil {
		errs = append(errs, s.server.Close())
	}
	return errors.Join(errs...)
}
