package embedtest

import (
	"fmt"

	"go.etcd.io/etcd/server/v3/embed"
)

// Option changes how [Start] and [New] set up the cluster.
type Option func(*options)

type options struct {
	members int
	tls     bool
	auth    bool
	config  []func(*embed.Config)
}

// WithMembers sets the number of members, 1 (the default) or 3. Any other
// number is an error.
func WithMembers(n int) Option {
	return func(o *options) { o.members = n }
}

// WithTLS serves clients over TLS, with a certificate for 127.0.0.1, ::1 and
// localhost by an authority made for this Server. [Server.TLSConfig] trusts it.
// Clients show no certificate.
func WithTLS() Option {
	return func(o *options) { o.tls = true }
}

// WithAuth turns authentication on, with simple tokens. There is one user,
// "root" with the password "root", and clients of the Server use it. More users
// are made through such a client.
func WithAuth() Option {
	return func(o *options) { o.auth = true }
}

// WithConfig calls change on each member's configuration, after everything else
// has been set and before the member starts, also on [Server.Restart]. Names,
// directories and addresses belong to the Server and must be left alone.
// It may be given more than once.
func WithConfig(change func(*embed.Config)) Option {
	return func(o *options) { o.config = append(o.config, change) }
}

func newOptions(opts []Option) (options, error) {
	o := options{members: 1}
	for _, opt := range opts {
		opt(&o)
	}
	if o.members != 1 && o.members != 3 {
		return o, fmt.Errorf("embedtest: a cluster has 1 or 3 members, not %d", o.members)
	}
	for _, change := range o.config {
		if change == nil {
			return o, fmt.Errorf("embedtest: WithConfig(nil)")
		}
	}
	return o, nil
}
