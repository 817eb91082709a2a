package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// cluster is an etcd cluster, possibly inside the program, and the program's clients of
// it.
type cluster struct {
	server    *embedtest.Server // nil if the cluster runs elsewhere
	endpoints []string
	etcd      *clientv3.Client
	client    *locker.Client
}

// connect starts etcd if there are no endpoints, and returns once etcd has answered.
func connect(ctx context.Context, s settings, log *slog.Logger) (_ *cluster, err error) {
	c := &cluster{endpoints: s.endpoints}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if len(c.endpoints) == 0 {
		if c.server, err = embedtest.New(); err != nil {
			return nil, err
		}
		c.endpoints = c.server.Endpoints()
	}
	if c.etcd, err = clientv3.New(locker.ClientConfig(c.endpoints...)); err != nil {
		return nil, err
	}
	if c.client, err = newClient(c.etcd, s, log); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, 4*time.Second) // shorter than gRPC waits on a silent connection
	defer cancel()
	switch _, err := c.client.Get(bounded, lockName(s.zone)); {
	case err == nil, errors.Is(err, locker.ErrNotFound):
		return c, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	default:
		return nil, connectError(c.endpoints, err)
	}
}

// connectError explains in one sentence why etcd could not be used.
func connectError(endpoints []string, err error) error {
	where := strings.Join(endpoints, ", ")
	var refusal interface { // an error of etcd itself
		error
		Code() codes.Code
	}
	if errors.As(err, &refusal) {
		return fmt.Errorf("cannot use etcd at %s: %w", where, refusal)
	}
	reason := "no answer"
	var failure interface{ GRPCStatus() *status.Status }
	if errors.As(err, &failure) {
		reason = failure.GRPCStatus().Message()
		// gRPC puts the reason in the middle of a message, in quotes.
		if _, dialing, ok := strings.Cut(reason, "dialing: "); ok {
			reason = strings.TrimSuffix(dialing, `"`)
		}
	}
	return fmt.Errorf("cannot reach etcd at %s: %s; is it running?", where, reason)
}

// checkEndpoint accepts HOST:PORT, optionally preceded by http:// or https://.
func checkEndpoint(endpoint string) error {
	text := endpoint
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" {
		if _, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return nil
		}
	}
	return fmt.Errorf("invalid endpoint %q: want an address such as 10.0.0.1:2379 or http://etcd.example.com:2379", endpoint)
}

func newClient(etcd *clientv3.Client, s settings, log *slog.Logger) (*locker.Client, error) {
	return locker.New(etcd, locker.WithPrefix(s.prefix), locker.WithTTL(s.lifetimes.lease), locker.WithLogger(log))
}

// close closes everything that is open, in reverse order.
func (c *cluster) close() error {
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.Close())
	}
	if c.etcd != nil {
		errs = append(errs, c.etcd.Close())
	}
	if c.server != nil {
		errs = append(errs, c.server.Close())
	}
	return errors.Join(errs...)
}

// where describes where etcd runs, and how other programs reach it.
func (c *cluster) where() string {
	endpoints := strings.Join(c.endpoints, ",")
	if c.server == nil {
		return "using etcd at " + endpoints
	}
	return "etcd is running inside this program; for register and watch, use -endpoints " + endpoints
}

// newLog returns a log for the operator, as opposed to the output of the program.
func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
