package locker

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/internal/txn"
)

// explain finds out what kept a request from being answered: etcd's client waits
// for a connection and does not say why there is none.
func (c *Client) explain(err error) error {
	conn := c.etcd.ActiveConnection()
	if !txn.IsContextError(err) || conn.GetState() == connectivity.Ready {
		return err
	}
	failure := c.failures.Do(func() error {
		ctx, cancel := context.WithTimeout(c.base, explainTimeout)
		defer cancel()
		// This one does not wait: it fails with the error of the last connection.
		_, failure := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(c.keys.Records()), CountOnly: true})
		return failure
	})
	if status.Code(failure) == codes.Unavailable {
		return failure
	}
	return err
}

// interrupted is the error of a wait that ctx has ended. It was for others, not for
// etcd, but if there is no connection that is worth to be told.
func (c *Client) interrupted(ctx context.Context) error {
	if c.etcd.ActiveConnection().GetState() == connectivity.Ready {
		return txn.Ended(ctx, nil)
	}
	return txn.Ended(ctx, c.explain(ctx.Err()))
}

// explainTimeout is how long it takes at most to find out what is wrong with a connection.
const explainTimeout = 50 * time.Millisecond
