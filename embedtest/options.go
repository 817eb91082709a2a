package embedtest

import (
	"fmt"

	"go.etcd.io/etcd/server/v3/embed"
)

// An Option configures the cluster that [Start] or [New] sets up.
type Option func(*options)

type options struct {
	members int
	tls     bool
	auth    bool
	config  []func(*embed.Config)
}

// WithMembers sets the number of members, 1 (the default) or 3. Any other number is an
// error.
func WithMembers(n int) Option {
	return func(o *options) { o.members = n }
}

// WithTLS makes the members serve clients over TLS, with a certificate for 127.0.0.1, ::1
// and localhost, signed by an authority that is created for this Server.
// [Server.TLSConfig] trusts that authority. Clients need no certificate.
func WithTLS() Option {
	return func(o *options) { o.tls = true }
}

// WithAuth enables authentication with simple tokens. There is one user, "root" with the
// password "root", which the Server's clients use. A test can use such a client to add
// more users.
func WithAuth() Option {
	return func(o *options) { o.auth = true }
}

// WithConfig calls change with each member's configuration after everything else has been
// set and before the member starts, including on [Server.Restart]. The function must not
// change names, directories or addresses, which the Server manages. WithConfig may be
// given more than once.
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
