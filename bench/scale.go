package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// amounts is how much -scale measures.
type amounts struct {
	locks    []int // held by one client
	waiters  []int // clients in the queue of one name
	clients  []int // with a lock each; 0 for etcd alone
	watchers []int // of one prefix

	renewals  int           // for how many intervals between renewals idle clients are observed
	idle      time.Duration // for how long those with a long TTL are
	settle    time.Duration // from the last request of a setup to the first measurement
	handOvers int           // at least
	changes   int           // at least
	busy      time.Duration // how long hand-overs and changes go on, at least
	reads     int           // of the whole queue

	sizeLimit time.Duration // for one line of a table
	limit     time.Duration // for all of them
}

var (
	fullAmounts = amounts{
		locks:    []int{1_000, 10_000, 100_000},
		waiters:  []int{10, 100, 1_000, 10_000},
		clients:  []int{0, 1, 10, 100, 1_000},
		watchers: []int{10, 100, 1_000, 10_000},
		renewals: 3, idle: 2 * time.Second, settle: time.Second, handOvers: 50, changes: 10, busy: time.Second, reads: 21,
		sizeLimit: 100 * time.Second, limit: 6 * time.Minute,
	}
	quickAmounts = amounts{
		locks:    []int{100, 1_000},
		waiters:  []int{10, 50},
		clients:  []int{0, 1, 10},
		watchers: []int{10, 100},
		renewals: 1, idle: time.Second, settle: 300 * time.Millisecond, handOvers: 10, changes: 3, busy: 300 * time.Millisecond, reads: 5,
		sizeLimit: 20 * time.Second, limit: 55 * time.Second,
	}
)

// study is a table of -scale: what something costs at growing sizes.
type study struct {
	title   string
	counted string // what there are so many of
	sizes   []int
	columns []figure // by their headings
	measure func(ctx context.Context, s *site, n int) (figures, error)
}

// studies returns the tables.
func studies(a amounts) []study {
	return []study{
		{
			title: "Locks held by one client", counted: "locks", sizes: a.locks, measure: a.measureLocks,
			columns: []figure{heapPerLock, etcdPerLock, databasePerLock, messagesPerLocks, bytesPerLock, etcdBusy},
		},
		{
			title: "Clients waiting for one name", counted: "waiters", sizes: a.waiters, measure: a.measureWaiters,
			columns: []figure{handOverTime, messagesPerHandOver, cpuPerHandOver, sortedRead, memoryPerWaiter, etcdPerWaiter, messagesPerWaiter, etcdBusy},
		},
		{
			title: "Idle clients, each with a connection, a session and a lock", counted: "clients", sizes: a.clients, measure: a.measureClients,
			columns: []figure{messagesPerClient, bytesPerClient, etcdBusy, memoryPerClient, etcdPerClient},
		},
		{
			title: "Watchers of one prefix", counted: "watchers", sizes: a.watchers, measure: a.measureWatchers,
			columns: []figure{changeTime, cpuPerChange, memoryPerWatcher, etcdPerWatcher},
		},
	}
}

// scaleReport holds the tables of a run.
type scaleReport struct {
	machine machine
	quick   bool
	took    time.Duration
	tables  []scaleTable
	failed  []string // what was not measured, and why
}

type scaleTable struct {
	study
	lines [][]string
}

// runScale measures what s asks for with -scale, and prints it to stdout.
func (r *runner) runScale(ctx context.Context, s settings, stdout io.Writer) error {
	cleanUp, err := r.prepare(ctx, s)
	if err != nil {
		return err
	}
	defer cleanUp()
	a := fullAmounts
	if s.quick {
		a = quickAmounts
	}
	rep, err := r.measureScale(ctx, a)
	if err != nil {
		return err
	}
	rep.quick = s.quick
	if err := rep.writeMarkdown(stdout); err != nil {
		return err
	}
	if len(rep.failed) > 0 {
		return fmt.Errorf("not measured: %s", strings.Join(rep.failed, "; "))
	}
	return nil
}

// measureScale measures all tables. If a size cannot be measured, that is reported, and the
// larger ones of its table are left out.
func (r *runner) measureScale(ctx context.Context, a amounts) (*scaleReport, error) {
	began := time.Now()
	rep := &scaleReport{}
	var err error
	if rep.machine, err = describeMachine(r.etcd.Dir); err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, a.limit, fmt.Errorf("the run did not finish within %v", a.limit))
	defer cancel()
	for _, st := range studies(a) {
		table := scaleTable{study: st}
		for i, n := range st.sizes {
			started := time.Now()
			f, err := r.measureSize(limited, st, n, a.sizeLimit)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				rep.failed = append(rep.failed, failure(st, st.sizes[i:], err))
				r.progress.logf("%s", rep.failed[len(rep.failed)-1])
				break
			}
			r.progress.logf("%s: %s measured in %v", st.title, thousands(n), time.Since(started).Round(100*time.Millisecond))
			table.lines = append(table.lines, table.cells(n, f))
		}
		rep.tables = append(rep.tables, table)
	}
	rep.took, rep.machine.Etcd = time.Since(began).Round(time.Second), r.version
	return rep, nil
}

// failure describes the sizes of a study that were not measured. The error is that of the
// first.
func failure(st study, sizes []int, err error) string {
	var texts []string
	for _, n := range sizes {
		texts = append(texts, thousands(n))
	}
	return fmt.Sprintf("%s (%s): %v", st.title, strings.Join(texts, ", "), err)
}

// measureSize measures one line of a table against an etcd of its own.
func (r *runner) measureSize(ctx context.Context, st study, n int, limit time.Duration) (f figures, err error) {
	r.progress.show("%s: %s", st.title, thousands(n))
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not finish within %v", limit))
	defer cancel()
	s, err := r.newSite(ctx)
	if err != nil {
		return nil, withCause(ctx, err)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	f, err = st.measure(s.ctx, s, n)
	return f, withCause(s.ctx, err)
}

// cells formats one line of the table.
func (st study) cells(n int, f figures) []string {
	cells := []string{thousands(n)}
	for _, column := range st.columns {
		if value, ok := f[column]; ok {
			cells = append(cells, number(value))
		} else {
			cells = append(cells, "–")
		}
	}
	return cells
}

// headings returns the headings of the columns.
func (st study) headings() []string {
	headings := []string{st.counted}
	for _, column := range st.columns {
		headings = append(headings, string(column))
	}
	return headings
}

// writeMarkdown writes the tables of which there are any lines.
func (rep *scaleReport) writeMarkdown(w io.Writer) error {
	var b strings.Builder
	for _, table := range rep.tables {
		if len(table.lines) > 0 {
			fmt.Fprintf(&b, "### %s\n\n", table.title)
			writePiped(&b, table.headings(), table.lines)
			b.WriteString("\n")
		}
	}
	for _, failed := range rep.failed {
		fmt.Fprintf(&b, "Not measured: %s\n\n", strings.ReplaceAll(failed, "\n", " "))
	}
	fmt.Fprintf(&b, "A new etcd process for each line. %s. Took %s.", rep.machine, rep.took)
	if rep.quick {
		b.WriteString(" Quick run, for a first impression only.")
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// thousands formats a number with commas between groups of three digits.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	var groups []string
	for ; len(digits) > 3; digits = digits[:len(digits)-3] {
		groups = append(groups, digits[len(digits)-3:])
	}
	groups = append(groups, digits)
	slices.Reverse(groups)
	return strings.Join(groups, ",")
}
