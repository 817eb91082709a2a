package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// ttl is the TTL of alpha's lease: it loses its lock after that time. The tests use a longer
// one, for busy machines.
var ttl = 2 * time.Second

// demo has two holders of a lock that write to one database.
type demo struct {
	logf        func(who, format string, args ...any)
	alpha, beta *holder
}

func newDemo(ctx context.Context, logf func(who, format string, args ...any), endpoints []string, url string) (_ *demo, err error) {
	d := &demo{logf: logf}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	prefix := locker.WithPrefix(fmt.Sprintf("locker-fencing-%08x/", rand.Uint32())) // different for each run
	if d.alpha, err = newHolder(ctx, endpoints, url, prefix, locker.WithTTL(ttl)); err != nil {
		return nil, err
	}
	if d.beta, err = newHolder(ctx, endpoints, url, prefix); err != nil {
		return nil, err
	}
	_, err = d.alpha.conn.Exec(ctx, table)
	return d, err
}

// check asks the database what was written.
func (d *demo) check(ctx context.Context, wantValue string, wantToken int64) error {
	var value string
	var token int64
	if err := d.beta.conn.QueryRow(ctx, "SELECT value, token FROM records WHERE name = $1", name).Scan(&value, &token); err != nil {
		return err
	}
	if value != wantValue || token != wantToken {
		return fmt.Errorf("the database has %q with token %d, want %q with token %d", value, token, wantValue, wantToken)
	}
	d.logf("postgres", "has %q with token %d", value, token)
	return nil
}

func (d *demo) close() error {
	var errs []error
	for _, h := range []*holder{d.beta, d.alpha} {
		if h != nil {
			errs = append(errs, h.close())
		}
	}
	return errors.Join(errs...)
}

// holder is a program that writes under the lock. Its network to etcd can be cut.
type holder struct {
	network *embedtest.Proxy
	etcd    *clientv3.Client
	client  *locker.Client
	conn    *pgx.Conn
}

func newHolder(ctx context.Context, endpoints []string, url string, opts ...locker.Option) (_ *holder, err error) {
	h := new(holder)
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if h.conn, err = pgx.Connect(ctx, url); err != nil {
		return nil, err
	}
	if h.network, err = embedtest.NewProxy(endpoints...); err != nil {
		return nil, err
	}
	if h.etcd, err = clientv3.New(locker.ClientConfig(h.network.Endpoints()...)); err != nil {
		return nil, err
	}
	if h.client, err = locker.New(h.etcd, opts...); err != nil {
		return nil, err
	}
	return h, nil
}

// close closes everything that is open, in reverse order.
func (h *holder) close() error {
	var errs []error
	if h.network != nil {
		h.network.Heal() // so that the lease can be revoked
	}
	if h.client != nil {
		errs = append(errs, h.client.Close())
	}
	if h.etcd != nil {
		errs = append(errs, h.etcd.Close())
	}
	if h.network != nil {
		errs = append(errs, h.network.Close())
	}
	if h.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		errs = append(errs, h.conn.Close(ctx))
	}
	return errors.Join(errs...)
}
