package locker

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

	"github.com/jagregory/locker/v2/internal/key"
)

// An Option configures a Client. It is passed to New, which returns ErrInvalid for a value
// that the option does not accept.
type Option func(*Client) error

// Defaults of New.
const (
	DefaultPrefix = "locker/"        // of keys, see WithPrefix
	DefaultTTL    = 10 * time.Second // of leases, see WithTTL
)

// WithPrefix sets the prefix of all keys in etcd. The default is "locker/". A slash is
// appended to a prefix that does not end in one. Clients with the same prefix exclude each
// other. A prefix must not lie below that of other clients.
func WithPrefix(prefix string) Option {
	return func(c *Client) error {
		c.keys = key.NewSpace(prefix)
		return checkText("prefix", prefix)
	}
}

// WithTTL sets the time to live of leases, which is how long a name stays locked after its
// holder has died. The default is 10 s. The TTL must be at least a second and at most a
// year. etcd counts in whole seconds, so a fraction is rounded up, and it may grant more
// than asked for: at least 1.5 times its election timeout.
//
// An eighth of the TTL, but at least 200 ms and at most 800 ms, is also the hedge delay:
// how long a request waits for its answer before it is made a second time, beside the
// first, to another member.
func WithTTL(ttl time.Duration) Option {
	return func(c *Client) error {
		c.ttl = ttl
		return checkTTL(ttl)
	}
}

// WithSafetyMargin sets how long before its lease could expire a hold ends. The default is
// a tenth of the TTL. The margin has to cover how far the clock of this machine may fall
// behind those of etcd within one TTL, and the time from a holder's check of its lock to
// the effect of what it does next. It must be more than 0 and at most half the TTL.
func WithSafetyMargin(d time.Duration) Option {
	return func(c *Client) error {
		c.margin = d
		if d <= 0 {
			return &InvalidError{"safety margin", d.String(), "it must be more than 0"}
		}
		return nil
	}
}

// WithLocalHandover lets up to n goroutines of this process in a row share one hold of a
// name, before the name goes back to etcd, where other clients wait for it. Passing a hold
// on takes no request, so a name that is contended within one process changes hands in
// microseconds. The goroutines exclude each other and are served in order as always. Only
// those with the same value and session share a hold, and none after a SetValue. The
// default is 1: every hold has a token of its own. n must be at least 1.
//
// This has a price:
//
//   - Other clients wait for n holders instead of one.
//   - Goroutines that share a hold have the same Token, so a fenced resource, Commit and
//     Guard do not tell them apart. What one of them still has in flight when it unlocks
//     may take effect while the next one holds.
//   - Unlock returns nil without etcd's confirmation that the hold was still good. A hold
//     whose entry was deleted by hand may be passed on for up to a third of the TTL, until
//     the client notices. Commit, SetValue and Guard refuse it from the first moment.
func WithLocalHandover(n int) Option {
	return func(c *Client) error {
		c.shares = n
		if n < 1 {
			return &InvalidError{"local hand-over", strconv.Itoa(n), "it must be at least 1"}
		}
		return nil
	}
}

// WithLogger sets where the client logs what no call returns: sessions that were lost or
// not confirmed gone, locks deleted by others, and a Cache that etcd refuses to fill again,
// at level Warn; sessions opened, and renewals and watches that had to be repeated, at level
// Debug. The default is to log nothing. l must not be nil.
func WithLogger(l *slog.Logger) Option {
	return func(c *Client) error {
		c.log = l
		if l == nil {
			return &InvalidError{"logger", "nil", "leave the option out to log nothing"}
		}
		return nil
	}
}

// A LockOption configures one lock.
type LockOption func(*lockConfig) error

// lockConfig is what LockOptions set.
type lockConfig struct{ session *Session }

// WithSession attaches the lock to a session of the caller's own. It is then lost with that
// session and with no other. The default is a session that the Client shares among its
// locks. A nil session, or one of another Client, is ErrInvalid.
func WithSession(s *Session) LockOption {
	return func(cfg *lockConfig) error {
		cfg.session = s
		if s == nil {
			return &InvalidError{"session", "nil", "leave the option out for a shared one"}
		}
		return nil
	}
}

// A SessionOption configures a Session of the caller's own.
type SessionOption func(*Session) error

// WithSessionTTL sets the time to live of the session's lease. The default is the TTL of
// the Client. The rules of WithTTL apply.
func WithSessionTTL(ttl time.Duration) SessionOption {
	return func(s *Session) error {
		s.ttl = ttl
		return checkTTL(ttl)
	}
}

const (
	// keepAliveTime is the least that gRPC accepts. A shorter time would gain nothing, and
	// might break connections if gRPC came to accept it: etcd closes connections on which
	// pings come more often than every 5 s (its --grpc-keepalive-min-time).
	keepAliveTime = 10 * time.Second

	// keepAliveTimeout is also how long the kernel waits for the peer to take data. With
	// 1 s, links with a round trip of a second could not keep a connection.
	keepAliveTimeout = 2 * time.Second
)

// ClientConfig returns the configuration of an etcd client that suits Locker, for
// [clientv3.New]. Set what it leaves open (TLS, Username and Password, and so on), and
// change what you like. It differs from a plain clientv3.Config in three ways:
//
//   - A connection that is dead although nobody has reset it, because packets are dropped
//     silently or the machine behind an address has vanished, is given up after 12 s.
//     Without these keep-alive pings it is used for as long as the kernel retransmits, a
//     quarter of an hour on Linux; and where one address stands for all of etcd, there is
//     no other connection meanwhile. While there is no request and no watch, nothing is
//     sent: PermitWithoutStream stays off, because etcd takes such pings for an attack and
//     closes the connection.
//   - The pause between attempts to connect grows to one second. gRPC's own grows to two
//     minutes, which is how long a program would stay without its locks after the network
//     is back.
//   - etcd's client logs nothing. Locker returns its errors, or logs them with
//     [WithLogger].
//
// There is no DialTimeout: [clientv3.New] returns at once, and calls wait for a connection
// until their context ends. Only with a Username does clientv3.New ask etcd for a token;
// set DialTimeout then, to bound that.
//
// On a link that takes longer than two seconds for 64 KiB, or for a round trip, set
// DialKeepAliveTimeout to more. [New] documents which other settings of a [clientv3.Config]
// are kept.
func ClientConfig(endpoints ...string) clientv3.Config {
	return clientv3.Config{
		Endpoints:            endpoints,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		})},
	}
}

// apply applies an option.
func apply[O ~func(T) error, T any](opt O, to T) error {
	if opt == nil {
		return &InvalidError{"option", "nil", "it does nothing"}
	}
	return opt(to)
}

// sessionFor returns the session that the options ask for, nil for a shared one.
func (c *Client) sessionFor(opts []LockOption) (*Session, error) {
	if len(opts) == 0 {
		return nil, nil
	}
	var cfg lockConfig
	for _, opt := range opts {
		if err := apply(opt, &cfg); err != nil {
			return nil, err
		}
	}
	if cfg.session != nil && cfg.session.client == nil {
		return nil, errZeroSession
	}
	if cfg.session != nil && cfg.session.client != c {
		return nil, &InvalidError{"session", cfg.session.member, "it belongs to another Client"}
	}
	return cfg.session, nil
}

// marginOf returns the safety margin of leases with the given TTL.
func (c *Client) marginOf(ttl time.Duration) time.Duration {
	if c.margin == 0 {
		return ttl / 10
	}
	return min(c.margin, ttl/2)
}

// MaxNameLength is the most bytes that a name may have.
const MaxNameLength = 1024

// checkName returns an error for a name that cannot be locked.
func checkName(name string) error {
	if len(name) > MaxNameLength {
		return &InvalidError{"name", quote(name), "it is longer than 1024 bytes"}
	}
	return checkText("name", name)
}

// checkContext returns an error for a nil context, which would otherwise panic in the
// middle of the call.
func checkContext(ctx context.Context) error {
	if ctx == nil {
		return &InvalidError{"context", "nil", "for a call without a bound there is context.Background"}
	}
	return nil
}

// checkText returns an error for a text that is empty, not valid UTF-8, or has control
// characters.
func checkText(what, text string) error {
	problem := ""
	switch {
	case text == "":
		problem = "it is empty"
	case !utf8.ValidString(text):
		problem = "it is not valid UTF-8"
	case strings.ContainsFunc(text, unicode.IsControl):
		problem = "it has a control character"
	default:
		return nil
	}
	return &InvalidError{what, quote(text), problem}
}

// checkTTL returns an error for a TTL that is too short or too long.
func checkTTL(ttl time.Duration) error {
	const longest = 365 * 24 * time.Hour
	switch {
	case ttl < time.Second:
		return &InvalidError{"TTL", ttl.String(), "it must be at least a second"}
	case ttl > longest:
		return &InvalidError{"TTL", ttl.String(), "it must be at most a year"}
	}
	return nil
}
