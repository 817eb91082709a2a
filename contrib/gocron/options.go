package gocronlocker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/jagregory/locker/v2"
)

// DefaultSplay is the splay unless WithSplay sets another.
const DefaultSplay = 500 * time.Millisecond

const longestSplay = 365 * 24 * time.Hour

// An Option configures a Locker or an Elector.
type Option func(*config) error

type config struct {
	clock clockwork.Clock
	splay time.Duration
}

// WithSplay sets how far apart the instances may be when they come to the same tick. The
// default is DefaultSplay. It must be more than 0, and at most a year.
//
// To a Locker, a call that comes less than d after a job was last started, each by the clock
// of its own instance, is about the same tick, and is refused. So d must be larger than the
// delay with which a busy instance comes to a tick, and together with that delay shorter
// than the time between two ticks of a job. The clocks do not count, see Locker. Half of that
// time is best, and tolerates the longest delays. Instances of a DurationJob without a fixed
// start run it once per interval between them if d is nine tenths of the interval.
//
// An Elector leads only after it has held its name for d. So d must be larger than that delay
// and the difference of two clocks together.
func WithSplay(d time.Duration) Option {
	return func(c *config) error {
		if d <= 0 || d > longestSplay {
			return &locker.InvalidError{Argument: "splay", Value: d.String(), Problem: "it must be more than 0, and at most a year"}
		}
		c.splay = d
		return nil
	}
}

// WithClock sets the clock, which must be that of the scheduler: use it together with
// gocron.WithClock. The default is the clock of the machine. It must not be nil.
func WithClock(clock clockwork.Clock) Option {
	return func(c *config) error {
		if clock == nil {
			return &locker.InvalidError{Argument: "clock", Value: "nil", Problem: "leave the option out for the clock of the machine"}
		}
		c.clock = clock
		return nil
	}
}

// configure checks the client and the name that is to be locked, and applies the options.
func configure(c *locker.Client, name string, opts []Option) (config, error) {
	cfg := config{clock: clockwork.NewRealClock(), splay: DefaultSplay}
	if c == nil {
		return cfg, &locker.InvalidError{Argument: "client", Value: "nil", Problem: "use locker.New"}
	}
	// A call whose context has ended checks its arguments and does nothing else.
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.TryLock(ended, name, ""); errors.Is(err, locker.ErrInvalid) {
		return cfg, err
	}
	for _, opt := range opts {
		if opt == nil {
			return cfg, &locker.InvalidError{Argument: "option", Value: "nil", Problem: "it does nothing"}
		}
		if err := opt(&cfg); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// wrap says which call an error belongs to.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("gocronlocker: %s: %w", op, err)
}
