package locker

import (
	"context"
	"iter"
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
// holder has died (with WithLockDelay, longer). The default is 10 s. The TTL must be at least a second and at most a
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

// WithLockDelay keeps a name locked for d after its holder was lost, so that requests which
// that holder still has in flight elsewhere can finish. The default is 0. The lease lives for
// the TTL and d, while a hold ends as early as without it; so whoever waits for the name, also
// by etcd's own means, waits for d longer. The lease of a session that was lost is not revoked,
// but expires, also after Close.
//
// A hold that was given up, or whose Client or Session was closed, leaves no delay, and
// neither does a lease that is revoked by hand, an entry that is deleted by hand, or an adopted
// session. The price: what a caller that was killed while it waited has left in the queue, or
// an Unlock that etcd did not confirm within the TTL, is in the way for d longer as well. d
// must not be negative, and at most a year.
func WithLockDelay(d time.Duration) Option {
	return func(c *Client) error {
		c.delay = d
		if d < 0 || d > longestTTL {
			return &InvalidError{"lock delay", d.String(), "it must not be negative, and at most a year"}
		}
		return nil
	}
}

// WithProgram sets what the records of the client's sessions, and so Owner.Program, say of this
// program. The default is the last element of os.Args[0].
func WithProgram(name string) Option {
	return func(c *Client) error {
		c.program = name
		return checkText("program", name)
	}
}

// WithLocalHandover lets up to n goroutines of this process in a row share one hold of a
// name, before the name goes back to etcd, where other clients wait for it. Passing a hold
// on takes no request, so a name that is contended within one process changes hands in
// microseconds. The goroutines exclude each other and are served in order as always. Only
// exclusive locks of that one name, with the same value and session, share a hold, and none
// after a SetValue. The
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

// A LockOption configures one lock. It applies to Lock, TryLock, Do and Campaign alike.
type LockOption func(*lockConfig) error

// lockConfig is what is to be locked, and how.
type lockConfig struct {
	item
	others  []item   // of And
	session *Session // of WithSession
	nested  bool     // it is that of an And
}

// item is one name to be locked.
type item struct {
	name, value string
	shared      bool
	limit       int // 0 if it was not set
}

// kind returns the kind of the item's entry.
func (i item) kind() key.Kind {
	switch {
	case i.shared:
		return key.Shared
	case i.limit == 0:
		return key.Exclusive
	}
	return key.Kind(i.limit)
}

// names returns all names.
func (cfg lockConfig) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield(cfg.name) {
			return
		}
		for _, other := range cfg.others {
			if !yield(other.name) {
				return
			}
		}
	}
}

// WithSession attaches the lock to a session of the caller's own. It is then lost with that
// session and with no other. The default is a session that the Client shares among its
// locks. A nil session, or one of another Client, is ErrInvalid.
func WithSession(s *Session) LockOption {
	return func(cfg *lockConfig) error {
		cfg.session = s
		switch {
		case s == nil:
			return &InvalidError{"session", "nil", "leave the option out for a shared one"}
		case cfg.nested:
			return errNested
		}
		return nil
	}
}

// WithShared makes the lock shared: any number of shared holders, and nobody else, hold a
// name together, like the readers of a sync.RWMutex. It is fair: one that comes behind a
// waiting exclusive lock waits for that, and TryLock is refused there. A shared lock is not
// reentrant, and cannot be upgraded or downgraded: unlock it, and lock anew.
//
// With WithLimit it is ErrInvalid.
func WithShared() LockOption {
	return func(cfg *lockConfig) error {
		cfg.shared = true
		return cfg.checkKind()
	}
}

// WithLimit lets at most n hold the name at one time, this hold included, like a counting
// semaphore. The default is 1, which is an exclusive lock. n must be at least 1 and at most
// 1000. The limit belongs to the lock, not to the name: nobody holds in larger company than it
// asked for, so of differing limits among the holders the smallest counts, and a larger one
// takes effect when those with the smaller have gone.
//
// A smaller token may be that of a live hold, so a resource cannot tell by tokens whether a
// hold is over; Guard and Commit can. With WithShared it is ErrInvalid.
func WithLimit(n int) LockOption {
	return func(cfg *lockConfig) error {
		if n < 1 || n > int(key.LargestLimit) {
			return &InvalidError{"limit", strconv.Itoa(n), "it must be at least 1 and at most 1000"}
		}
		cfg.limit = n
		return cfg.checkKind()
	}
}

// checkKind returns an error for a lock that is shared and limited.
func (cfg *lockConfig) checkKind() error {
	if cfg.shared && cfg.limit != 0 {
		return &InvalidError{"limit", strconv.Itoa(cfg.limit), "a shared lock has none"}
	}
	return nil
}

// And locks another name, with a value of its own, in the same transaction: the names are
// held, lost and released as one, and have one token. Locks of several names cannot deadlock
// with each other, in whatever order they name them; to call Lock while holding another lock
// can. A lock may have 100 names. Lock.Name, Key, Value and SetValue are about the first.
//
// opts are WithShared and WithLimit, of that name alone. A name given twice, or another
// option, is ErrInvalid.
func And(name, value string, opts ...LockOption) LockOption {
	return func(cfg *lockConfig) error {
		if cfg.nested {
			return errNested
		}
		if err := checkName(name); err != nil {
			return err
		}
		other := lockConfig{item: item{name: name, value: value}, nested: true}
		for _, opt := range opts {
			if err := apply(opt, &other); err != nil {
				return err
			}
		}
		for taken := range cfg.names() {
			if taken == name {
				return &InvalidError{"name", quote(name), "it is given twice"}
			}
		}
		if cfg.others = append(cfg.others, other.item); len(cfg.others) >= mostNames {
			return &InvalidError{"number of names", strconv.Itoa(1 + len(cfg.others)), "a lock may have 100"}
		}
		return nil
	}
}

// mostNames bounds the names of one lock: what writes to their queues has to fit into one
// transaction, see txn.MaxTogether.
const mostNames = 100

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

// configure returns what a lock is to be, after checking it.
func (c *Client) configure(name, value string, opts []LockOption) (lockConfig, error) {
	if err := checkName(name); err != nil {
		return lockConfig{}, err
	}
	cfg := lockConfig{item: item{name: name, value: value}}
	if len(opts) == 0 {
		return cfg, nil
	}
	return c.withOptions(cfg, opts)
}

// withOptions applies the options of a lock.
func (c *Client) withOptions(cfg lockConfig, opts []LockOption) (lockConfig, error) {
	for _, opt := range opts {
		if err := apply(opt, &cfg); err != nil {
			return cfg, err
		}
	}
	switch {
	case cfg.session == nil:
		return cfg, nil
	case cfg.session.client == nil:
		return cfg, errZeroSession
	case cfg.session.client != c:
		return cfg, &InvalidError{"session", cfg.session.member, "it belongs to another Client"}
	}
	return cfg, nil
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

// longestTTL is a year. etcd allows for more.
const longestTTL = 365 * 24 * time.Hour

// checkTTL returns an error for a TTL that is too short or too long.
func checkTTL(ttl time.Duration) error {
	switch {
	case ttl < time.Second:
		return &InvalidError{"TTL", ttl.String(), "it must be at least a second"}
	case ttl > longestTTL:
		return &InvalidError{"TTL", ttl.String(), "it must be at most a year"}
	}
	return nil
}
