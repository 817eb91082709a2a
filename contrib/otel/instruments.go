package otellocker

import (
	"errors"

	"go.opentelemetry.io/otel/metric"
)

type instruments struct {
	waitDuration, holdDuration metric.Float64Histogram
	waiting, held              metric.Int64UpDownCounter
	losses                     metric.Int64Counter
	renewalDuration, slack     metric.Float64Histogram
	resets                     metric.Int64Counter
}

// The boundaries of the buckets, in seconds. A request to etcd takes a millisecond or a few,
// a wait or a hold as long as others like, and the slack is less than the TTL, which is 10 s
// by default.
var (
	waits    = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800}
	holds    = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400}
	renewals = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	slacks   = []float64{0, .1, .25, .5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 60}
)

func newInstruments(meter metric.Meter) (i instruments, err error) {
	var errs [8]error
	histogram := func(name, description string, boundaries []float64) (metric.Float64Histogram, error) {
		return meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description),
			metric.WithExplicitBucketBoundaries(boundaries...))
	}
	i.waitDuration, errs[0] = histogram("locker.lock.wait.duration",
		"How long calls took that lock, until they held the lock or failed.", waits)
	i.holdDuration, errs[1] = histogram("locker.lock.hold.duration",
		"How long locks were held that are not held any more.", holds)
	i.waiting, errs[2] = meter.Int64UpDownCounter("locker.lock.waiting",
		metric.WithUnit("{call}"), metric.WithDescription("The calls that are about to lock."))
	i.held, errs[3] = meter.Int64UpDownCounter("locker.lock.held",
		metric.WithUnit("{lock}"), metric.WithDescription("The locks that are held."))
	i.losses, errs[4] = meter.Int64Counter("locker.lock.losses",
		metric.WithUnit("{loss}"), metric.WithDescription("The locks that were lost while they were held."))
	i.renewalDuration, errs[5] = histogram("locker.session.renewal.duration",
		"How long it took to renew the lease of a session, or to learn that it is lost.", renewals)
	i.slack, errs[6] = histogram("locker.session.slack",
		"How much time was left, when a lease had been renewed, until it would have been lost.", slacks)
	i.resets, errs[7] = meter.Int64Counter("locker.watch.resets",
		metric.WithUnit("{reset}"), metric.WithDescription("How often watches of etcd were opened again."))
	return i, errors.Join(errs[:]...)
}
