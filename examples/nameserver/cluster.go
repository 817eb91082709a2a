package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

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
	config := clientv3.Config{Endpoints: c.endpoints, Logger: zap.NewNop()} // what matters, Locker tells
	if c.etcd, err = clientv3.New(config); err != nil {
		return nil, err
	}
	if c.client, err = newClient(c.etcd, s, log); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("no answer"))
	defer cancel()
	if _, err := c.client.Get(ctx, lockName(s.zone)); err != nil && !errors.Is(err, locker.ErrNotFound) {
		return nil, fmt.Errorf("cannot use the etcd at %s: %w", strings.Join(c.endpoints, ", "), err)
	}
	return c, nil
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
