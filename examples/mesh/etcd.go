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

// cluster is the etcd cluster that the program uses: that of -endpoints, or its own.
type cluster struct {
	endpoints []string
	server    *embedtest.Server // nil with -endpoints
}

// openCluster starts etcd if there are no endpoints, and prints its endpoints.
func openCluster(endpoints []string, out io.Writer) (*cluster, error) {
	if len(endpoints) > 0 {
		return &cluster{endpoints: endpoints}, nil
	}
	server, err := embedtest.New()
	if err != nil {
		return nil, fmt.Errorf("cannot start etcd: %w", err)
	}
	c := &cluster{endpoints: server.Endpoints(), server: server}
	fmt.Fprintf(out, "etcd is running inside this program; others join with -endpoints %s\n", strings.Join(c.endpoints, ","))
	return c, nil
}

func (c *cluster) close() error {
	if c.server == nil {
		return nil
	}
	return c.server.Close()
}

// connection is a connection to etcd, and a Locker client that uses it.
type connection struct {
	*locker.Client
	etcd *clientv3.Client
}

// connect connects to etcd and returns once etcd has answered, or an error that explains
// why it has not.
func connect(ctx context.Context, endpoints []string, options ...locker.Option) (*connection, error) {
	etcd, err := clientv3.New(locker.ClientConfig(endpoints...))
	if err != nil {
		return nil, fmt.Errorf("cannot use etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	client, err := locker.New(etcd, options...)
	if err != nil {
		return nil, errors.Join(err, etcd.Close())
	}
	c := &connection{client, etcd}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errNoAnswer)
	defer cancel()
	_, err = client.Get(ctx, "anything")
	switch {
	case err == nil || errors.Is(err, locker.ErrNotFound):
		return c, nil
	case errors.Is(err, errNoAnswer):
		err = fmt.Errorf("cannot reach etcd at %s: %s; is it running?", strings.Join(endpoints, ","), dialError(err))
	default:
		err = fmt.Errorf("cannot use etcd at %s: %w", strings.Join(endpoints, ","), err)
	}
	return nil, errors.Join(err, c.close())
}

var errNoAnswer = errors.New("no answer")

// dialError returns the operating system's reason why there is no connection, which gRPC
// puts last.
func dialError(err error) string {
	_, text, ok := strings.Cut(err.Error(), "connection error: ")
	if !ok {
		return errNoAnswer.Error()
	}
	words := strings.Split(text, ": ")
	return strings.TrimRight(words[len(words)-1], `")`)
}

// close releases everything that is held, and closes the connection.
func (c *connection) close() error {
	return errors.Join(c.Client.Close(), c.etcd.Close())
}
