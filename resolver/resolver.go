package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc/resolver"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/backoff"
)

// Scheme is the scheme of the targets, as in locker:///NAME.
const Scheme = "locker"

const (
	silence = 5 * time.Second // of etcd, after which a watch is opened again, and an attempt is given up
	keep    = time.Second     // how long the last addresses are kept while nobody holds the name
)

var errSilent = fmt.Errorf("etcd has not answered for %v", silence)

// NewBuilder returns a Builder for targets of the form locker:///NAME, for
// grpc.WithResolvers. It does not block. The Client remains the caller's: close it after the
// connections that use the Builder. A Builder is safe for concurrent use.
//
// Build makes no request and does not block. Its errors, with which requests on the
// connection fail: ErrInvalid as *InvalidError for a bad name, for a target with anything
// else in it, and for a nil Client. Closing the connection ends the watch.
func NewBuilder(c *locker.Client) resolver.Builder { return builder{c} }

type builder struct{ client *locker.Client }

func (builder) Scheme() string { return Scheme }

func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	name, err := b.nameOf(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &nameResolver{client: b.client, name: name, cc: cc, cancel: cancel, done: make(chan struct{})}
	go r.run(ctx)
	return r, nil
}

// nameOf returns the name in a target.
func (b builder) nameOf(target resolver.Target) (string, error) {
	got := target.URL
	want := url.URL{Scheme: got.Scheme, Path: got.Path, RawPath: got.RawPath, OmitHost: got.OmitHost}
	if got != want {
		return "", &locker.InvalidError{
			Argument: "target",
			Value:    strconv.Quote(got.String()),
			Problem:  "it is not of the form locker:///NAME; url.PathEscape escapes a name",
		}
	}
	// With a context that has ended, this checks its arguments and makes no request.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.client.Holders(ended, target.Endpoint()); errors.Is(err, locker.ErrInvalid) {
		return "", err
	}
	return target.Endpoint(), nil
}

// nameResolver follows one name for one connection.
type nameResolver struct {
	client *locker.Client
	name   string
	cc     resolver.ClientConn
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned

	// What follows belongs to run.
	given     []string  // the addresses that gRPC has
	problem   string    // the error that was reported since they were given, if any
	freeSince time.Time // since when there have been no addresses instead of them; zero while there are
}

// ResolveNow does nothing: gRPC calls it when a connection fails, but the watch has already
// reported whatever there is.
func (*nameResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close ends the watch and returns when its goroutine has ended.
func (r *nameResolver) Close() {
	r.cancel()
	<-r.done
}

// run follows the name until ctx ends or nothing can be learned any more.
func (r *nameResolver) run(ctx context.Context) {
	defer close(r.done)
	for pause := (backoff.Pause{}); ; {
		err := r.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, locker.ErrClosed), errors.Is(err, locker.ErrEtcdClosed), errors.Is(err, locker.ErrInvalid):
			r.withdraw(err) // nothing would ever correct them
			return
		case err != nil:
			r.report(err)
		}
		if pause.Wait(ctx) != nil {
			return
		}
	}
}

// follow gives gRPC the addresses in a Cache until that has not been current for a while. It
// returns an error if it did not get a Cache. A Watch would not do: it does not report every
// change among several holders.
func (r *nameResolver) follow(ctx context.Context) error {
	filling, cancel := context.WithTimeoutCause(ctx, silence, errSilent)
	defer cancel()
	cache, err := r.client.NewCache(filling, r.name)
	if err != nil {
		return err
	}
	defer cache.Close()
	clock := time.NewTicker(keep)
	defer clock.Stop()
	for cache.Age() < silence {
		changed := cache.Changed()
		r.update(cache.Holders(r.name))
		select {
		case <-changed:
		case <-clock.C:
		case <-ctx.Done():
			return nil
		}
	}
	return nil // NewCache will learn what is wrong
}

// update gives gRPC the addresses of the holders; if there are none, it withdraws the last
// ones after a moment.
func (r *nameResolver) update(holders []locker.Holder) {
	addresses, err := addressesOf(r.name, holders)
	switch {
	case err == nil:
		r.give(addresses)
	case len(r.given) > 0 && r.freeSince.IsZero():
		r.freeSince = time.Now()
	case len(r.given) == 0 || time.Since(r.freeSince) >= keep:
		r.withdraw(err)
	}
}

// give makes gRPC use these addresses and no others.
func (r *nameResolver) give(addresses []string) {
	r.freeSince = time.Time{}
	if r.problem == "" && slices.Equal(addresses, r.given) {
		return
	}
	r.given, r.problem = addresses, ""
	var state resolver.State
	for _, address := range addresses {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	_ = r.cc.UpdateState(state) // an error asks for another resolution, which would find the same
}

// withdraw makes gRPC use no address, so that requests fail with err.
func (r *nameResolver) withdraw(err error) {
	if len(r.given) > 0 {
		r.given = nil
		_ = r.cc.UpdateState(resolver.State{})
	}
	r.report(err)
}

// report makes requests fail with err if they find no connection.
func (r *nameResolver) report(err error) {
	if text := err.Error(); text != r.problem {
		r.problem = text
		r.cc.ReportError(err)
	}
}

// addressesOf returns the values of the holders that are addresses, each once, the oldest
// holder's first; or an error if there are none.
func addressesOf(name string, holders []locker.Holder) (addresses []string, err error) {
	for _, holder := range holders {
		if isAddress(holder.Value) && !slices.Contains(addresses, holder.Value) {
			addresses = append(addresses, holder.Value)
		}
	}
	switch {
	case len(addresses) > 0:
		return addresses, nil
	case len(holders) > 0:
		return nil, fmt.Errorf("locker: the value of %q is not of the form host:port: %.100q", name, holders[0].Value)
	default:
		return nil, fmt.Errorf("locker: nobody holds %q", name)
	}
}

// isAddress reports whether value is a host and the number of a port.
func isAddress(value string) bool {
	host, port, err := net.SplitHostPort(value)
	number, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && host != "" && bad == nil && number > 0
}
