package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// cluster is the etcd that the program uses: that of -endpoints, or one of its own.
type cluster struct {
	endpoints []string
	own       *embedtest.Server // nil with -endpoints
}

// openCluster starts an etcd if there are no endpoints, and says where it is.
func openCluster(endpoints []string, out io.Writer) (*cluster, error) {
	if len(endpoints) > 0 {
		return &cluster{endpoints: endpoints}, nil
	}
	own, err := embedtest.New()
	if err != nil {
		return nil, fmt.Errorf("cannot start an etcd: %w", err)
	}
	c := &cluster{endpoints: own.Endpoints(), own: own}
	fmt.Fprintf(out, "An etcd runs inside this program, as long as it does. Others join with -endpoints %s\n", strings.Join(c.endpoints, ","))
	return c, nil
}

func (c *cluster) close() error {
	if c.own == nil {
		return nil
	}
	return c.own.Close()
}

// member is a connection to etcd and a locker client over it.
type member struct {
	*locker.Client
	etcd *clientv3.Client
}

// join connects to etcd and returns when it answers, or with an error that says why not.
func join(ctx context.Context, endpoints []string, options ...locker.Option) (*member, error) {
	etcd, err := clientv3.New(locker.ClientConfig(endpoints...))
	if err != nil {
		return nil, fmt.Errorf("cannot use the etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	client, err := locker.New(etcd, options...)
	if err != nil {
		return nil, errors.Join(err, etcd.Close())
	}
	m := &member{client, etcd}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errSilent)
	defer cancel()
	_, err = client.Get(ctx, "anything")
	switch {
	case err == nil || errors.Is(err, locker.ErrNotFound):
		return m, nil
	case errors.Is(err, errSilent):
		err = fmt.Errorf("cannot reach the etcd at %s: %s; is it running?", strings.Join(endpoints, ","), obstacle(err))
	default:
		err = fmt.Errorf("cannot use the etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	return nil, errors.Join(err, m.close())
}

var errSilent = errors.New("it does not answer")

// obstacle says in the words of the system why there is no connection: gRPC has them last.
func obstacle(err error) string {
	_, text, ok := strings.Cut(err.Error(), "connection error: ")
	if !ok {
		return errSilent.Error()
	}
	words := strings.Split(text, ": ")
	return strings.TrimRight(words[len(words)-1], `")`)
}

// close gives back all that is held, and hangs up.
func (m *member) close() error {
	return errors.Join(m.Client.Close(), m.etcd.Close())
}
