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

// Option adjusts a Client.
type Option func(*Client) error

// What New uses without WithPrefix and WithTTL.
const (
	DefaultPrefix = "locker/"
	DefaultTTL    = 10 * time.Second
)

// WithPrefix sets the prefix of all keys in etcd; the default is "locker/". A
// slash is added if there is none at its end. Clients with the same prefix
// exclude each other; a prefix must not lie below that of other clients.
func WithPrefix(prefix string) Option {
	return func(c *Client) error {
		c.keys = key.NewSpace(prefix)
		return checkText("prefix", prefix)
	}
}

// WithTTL sets the time to live of leases, which is how long a holder that has
// died keeps a name; the default is 10 s. etcd counts in whole seconds, so that a
// fraction is rounded up, and may grant more: its least is 1.5 times its election
// timeout. At least a second and at most a year. An eighth of it, within 200 and 800 ms,
// is also how long a request waits for its answer before it is made once more, beside
// the first, to another member.
func WithTTL(ttl time.Duration) Option {
	return func(c *Client) error {
		c.ttl = ttl
		return checkTTL(ttl)
	}
}

// WithSafetyMargin sets how long before its lease could run out a hold ends; the
// default is a tenth of the TTL. It covers what the clock of this machine may be
// slower than those of etcd over one TTL, and the time from a holder's check of
// its lock to the effect of what it does then. More than 0, at most half the TTL.
func WithSafetyMargin(d time.Duration) Option {
	return func(c *Client) error {
		c.margin = d
		if d <= 0 {
			return &InvalidError{"safety margin", d.String(), "it must be more than 0"}
		}
		return nil
	}
}

// WithLocalHandover lets up to n goroutines of this process in a row share one hold of
// a name before it goes back to etcd, where other clients wait for it. Passing it on
// takes no request; so a name that is busy within one process changes hands in
// microseconds. The price: other clients wait for n turns instead of one; those who
// share a hold have the same Token, so that a fenced resource, Commit and Guard do
// not tell them apart, and what one of them still has in flight when it unlocks may
// take effect during the next turn. And Unlock returns nil without etcd's word that
// the hold was still good: one whose entry was deleted by hand may be passed on for up
// to a third of the TTL, until the client notices; Commit, SetValue and Guard refuse it
// from the first moment. They exclude each other and take their turns in order as
// always; only those with the same value and session share, and none after a
// SetValue. The default is 1, which is none: every hold has a token of its own.
func WithLocalHandover(n int) Option {
	return func(c *Client) error {
		c.turns = n
		if n < 1 {
			return &InvalidError{"local hand-over", strconv.Itoa(n), "it must be at least 1"}
		}
		return nil
	}
}

// WithLogger sets where the client logs what no call returns: sessions that were
// lost or not confirmed gone, locks deleted by others (Warn); sessions opened,
// renewals and watches that had to be repeated (Debug). The default is to log
// nothing.
func WithLogger(l *slog.Logger) Option {
	return func(c *Client) error {
		c.log = l
		if l == nil {
			return &InvalidError{"logger", "nil", "leave the option out to log nothing"}
		}
		return nil
	}
}

// LockOption adjusts one lock.
type LockOption func(*lockConfig) error

type lockConfig struct{ session *Session }

// WithSession attaches the lock to a session of the caller's own: it is lost with
// that session and with no other. The default is a session that the Client shares
// among its locks. A session of another Client, or nil, is ErrInvalid.
func WithSession(s *Session) LockOption {
	return func(cfg *lockConfig) error {
		cfg.session = s
		if s == nil {
			return &InvalidError{"session", "nil", "leave the option out for a shared one"}
		}
		return nil
	}
}

// SessionOption adjusts a Session of the caller's own.
type SessionOption func(*Session) error

// WithSessionTTL sets the time to live of the session's lease; the default is
// that of the Client. The rules of WithTTL apply.
func WithSessionTTL(ttl time.Duration) SessionOption {
	return func(s *Session) error {
		s.ttl = ttl
		return checkTTL(ttl)
	}
}

const (
	// keepAliveTime is the least that gRPC accepts. A shorter one would gain nothing, and
	// might break connections if gRPC came to accept it: etcd closes those on which pings
	// come more often than every 5 s (its --grpc-keepalive-min-time).
	keepAliveTime = 10 * time.Second

	// keepAliveTimeout is also how long the kernel waits for the peer to take data. With
	// 1 s, links with a round trip of a second would not keep a connection.
	keepAliveTimeout = 2 * time.Second
)

// ClientConfig returns the configuration of an etcd client that suits Locker, for
// [clientv3.New]. Set what it leaves open (TLS, Username and Password, ...), and change what
// you like. It differs from a plain clientv3.Config in three things:
//
//   - A connection that is dead although nobody has reset it, because packets are dropped in
//     silence or the machine behind an address has vanished, is given up after 12 s. Without
//     these keep-alive pings it is used for as long as the kernel repeats what it sends, a
//     quarter of an hour on Linux; and where one address stands before all of etcd, there is
//     no other connection meanwhile. Without a request or a watch nothing is sent
//     (PermitWithoutStream stays off: etcd takes such pings for an attack, and closes the
//     connection).
//   - The pause between attempts to connect grows to one second. gRPC's own grows to two
//     minutes, which is how long a program would stay without its locks after the network
//     is back.
//   - etcd's client logs nothing. Locker returns its errors, or logs them with [WithLogger].
//
// There is no DialTimeout: [clientv3.New] returns at once, and calls wait for a connection
// until their context ends. Only with a Username New itself asks etcd for a token; set
// DialTimeout then to bound that.
//
// On a link where 64 KiB take longer than two seconds, or where the round trip does, set
// DialKeepAliveTimeout to more. What else of a [clientv3.Config] is kept, and what is not,
// is documented at [New].
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

// marginOf returns the safety margin for leases with that TTL.
func (c *Client) marginOf(ttl time.Duration) time.Duration {
	if c.margin == 0 {
		return ttl / 10
	}
	return min(c.margin, ttl/2)
}

// MaxNameLength is how many bytes a name may have.
const MaxNameLength = 1024

func checkName(name string) error {
	if len(name) > MaxNameLength {
		return &InvalidError{"name", quote(name), "it is longer than 1024 bytes"}
	}
	return checkText("name", name)
}

// checkContext refuses what would panic, once the call is half done.
func checkContext(ctx context.Context) error {
	if ctx == nil {
		return &InvalidError{"context", "nil", "for a call without a bound there is context.Background"}
	}
	return nil
}

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
