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

// cluster is an etcd, which may run inside the program, and the program's client of it.
type cluster struct {
	server    *embedtest.Server // nil for one that runs elsewhere
	endpoints []string
	etcd      *clientv3.Client
	client    *locker.Client
}

// connect starts an etcd if none is given, and returns when etcd has answered.
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
	bounded, cancel := context.WithTimeout(ctx, 4*time.Second) // before gRPC gives up a connection that is mute
	defer cancel()
	switch _, err := c.client.Get(bounded, lockName(s.zone)); {
	case err == nil, errors.Is(err, locker.ErrNotFound):
		return c, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	default:
		return nil, unusable(c.endpoints, err)
	}
}

// unusable says in a sentence why etcd did not do what it was asked for.
func unusable(endpoints []string, err error) error {
	where := strings.Join(endpoints, ", ")
	var refusal interface { // of etcd itself
		error
		Code() codes.Code
	}
	if errors.As(err, &refusal) {
		return fmt.Errorf("cannot use the etcd at %s: %w", where, refusal)
	}
	reason := "it does not answer"
	var failure interface{ GRPCStatus() *status.Status }
	if errors.As(err, &failure) {
		reason = failure.GRPCStatus().Message()
		// Why there is no connection, gRPC says in the middle of a text, in quotes.
		if _, dialing, ok := strings.Cut(reason, "dialing: "); ok {
			reason = strings.TrimSuffix(dialing, `"`)
		}
	}
	return fmt.Errorf("cannot reach the etcd at %s: %s; is it running?", where, reason)
}

// checkEndpoint accepts HOST:PORT, with or without http:// or https:// before it.
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
	return fmt.Errorf("%q is no endpoint: it should be like 10.0.0.1:2379 or http://etcd.example.com:2379", endpoint)
}

func newClient(etcd *clientv3.Client, s settings, log *slog.Logger) (*locker.Client, error) {
	return locker.New(etcd, locker.WithPrefix(s.prefix), locker.WithTTL(s.lifetimes.lease), locker.WithLogger(log))
}

// close closes what there is, the last first.
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

// where says which etcd it is, and how others reach it.
func (c *cluster) where() string {
	endpoints := strings.Join(c.endpoints, ",")
	if c.server == nil {
		return "records are kept in the etcd at " + endpoints
	}
	return "etcd runs inside this program; for register and watch: -endpoints " + endpoints
}

// newLog writes for the operator, as opposed to what the program was asked for.
func newLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
