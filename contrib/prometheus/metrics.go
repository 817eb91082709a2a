package promlocker

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jagregory/locker/v2"
)

// Upper bounds of buckets. The alert on a small slack looks at the 0.1 of ratios.
var (
	waits    = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	holds    = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600}
	renewals = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	slacks   = []float64{.1, .25, .5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60}
	ratios   = []float64{.05, .1, .2, .3, .4, .5, .6}
)

// An Option configures what New returns.
type Option func(*options)

type options struct {
	label  func(name string) string // nil: there is no such label
	factor float64
}

// WithNames adds the label name to the metrics that begin with locker_lock. Its value is what label
// returns for the name of a lock; if a call locks several, for the first. Without WithNames there
// is no such label, because each value makes about forty series, or more, which stay until the program
// ends. So label should return one of a few values, and must always return the same for the same
// name. It has to be safe for concurrent use. What is not valid UTF-8 in a value is replaced.
func WithNames(label func(name string) string) Option {
	return func(o *options) { o.label = label }
}

// WithNativeHistograms adds a native histogram to each histogram in seconds, whose buckets grow by
// at most that factor; 1.1 is a good one. The factor has to be above 1, otherwise there are none.
// There are at most 160 buckets; to stay below, they are made wider, or reset once an hour.
func WithNativeHistograms(factor float64) Option {
	return func(o *options) { o.factor = factor }
}

// Metrics is a prometheus.Collector of what Clients do. It is safe for concurrent use. No method
// blocks.
type Metrics struct {
	label func(name string) string

	wait, hold    *prometheus.HistogramVec
	held, waiting *prometheus.GaugeVec
	losses        *prometheus.CounterVec
	unnamed       *locks   // of all names; nil if there is a label
	named         sync.Map // the *locks of each value of the label

	renewal           *prometheus.HistogramVec
	slack, slackRatio prometheus.Histogram
	resets            *prometheus.CounterVec
}

// New returns Metrics in which nothing has happened yet. Register them, and give their Hooks to
// each Client.
func New(opts ...Option) *Metrics {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	var named []string
	if o.label != nil {
		named = []string{"name"}
	}
	m := &Metrics{
		label: o.label,
		wait: prometheus.NewHistogramVec(o.seconds("locker_lock_wait_duration_seconds",
			"How long calls waited for a lock.", waits), append([]string{"error_type", "verb"}, named...)),
		hold: prometheus.NewHistogramVec(o.seconds("locker_lock_hold_duration_seconds",
			"How long locks were held.", holds), append([]string{"end"}, named...)),
		held: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "locker_lock_held",
			Help: "Locks that are held."}, named),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "locker_lock_waiting",
			Help: "Calls that wait for a lock."}, named),
		losses: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "locker_lock_losses_total",
			Help: "Locks that were lost."}, append([]string{"reason"}, named...)),
		renewal: prometheus.NewHistogramVec(o.seconds("locker_session_renewal_duration_seconds",
			"How long it took to renew a lease.", renewals), []string{"error_type"}),
		slack: prometheus.NewHistogram(o.seconds("locker_session_slack_seconds",
			"How long before its deadline a lease was renewed.", slacks)),
		slackRatio: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "locker_session_slack_ratio",
			Help: "How long before its deadline a lease was renewed, as a share of its TTL.", Buckets: ratios}),
		resets: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "locker_watch_resets_total",
			Help: "How often watches were opened again."}, []string{"cause"}),
	}
	m.begin()
	return m
}

// seconds returns the options of a histogram.
func (o options) seconds(name, help string, buckets []float64) prometheus.HistogramOpts {
	return prometheus.HistogramOpts{
		Name:                            name,
		Help:                            help,
		Buckets:                         buckets,
		NativeHistogramBucketFactor:     o.factor,
		NativeHistogramMaxBucketNumber:  160,
		NativeHistogramMinResetDuration: time.Hour,
	}
}

// begin makes the series that are to exist before anything has happened.
func (m *Metrics) begin() {
	if m.label == nil {
		m.unnamed = m.newLocks(nil)
	}
	for _, e := range []string{"", "lost"} {
		m.renewal.WithLabelValues(e)
	}
	for _, c := range []string{"disconnect", "no answer", "compaction", "refused", "restore"} {
		m.resets.WithLabelValues(c)
	}
}

// Describe is for the registry.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(descs)
	}
}

// Collect is for the registry.
func (m *Metrics) Collect(metrics chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(metrics)
	}
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.wait, m.hold, m.held, m.waiting, m.losses, m.renewal, m.slack, m.slackRatio, m.resets}
}

// locks has the metrics of the locks with one value of the label name, or of all.
type locks struct {
	wait, hold    prometheus.ObserverVec
	held, waiting prometheus.Gauge
	losses        *prometheus.CounterVec
}

// newLocks returns the same metrics each time it is called with the same label.
func (m *Metrics) newLocks(label prometheus.Labels) *locks {
	l := &locks{
		wait:    m.wait.MustCurryWith(label),
		hold:    m.hold.MustCurryWith(label),
		held:    m.held.With(label),
		waiting: m.waiting.With(label),
		losses:  m.losses.MustCurryWith(label),
	}
	for _, r := range []locker.Reason{locker.Expired, locker.Revoked, locker.Deleted} {
		l.losses.WithLabelValues(r.String())
	}
	return l
}

// of returns the metrics of the locks that are counted with that name.
func (m *Metrics) of(lock string) *locks {
	if m.label == nil {
		return m.unnamed
	}
	value := strings.ToValidUTF8(m.label(lock), "\uFFFD") // anything else would make Prometheus panic
	if l, ok := m.named.Load(value); ok {
		return l.(*locks)
	}
	l, _ := m.named.LoadOrStore(value, m.newLocks(prometheus.Labels{"name": value}))
	return l.(*locks)
}
