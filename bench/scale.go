package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jagregory/locker/v2"
)

// amounts is how much -scale measures.
type amounts struct {
	locks    []int // held by one client
	sessions []int // of one client
	waiters  []int // in the queue of one name
	clients  []int // with a lock each; 0 for etcd alone
	watchers []int // of one prefix
	names    []int // held while values change

	crowd     int           // clients in a queue, at most: the other waiters are bare entries
	renewed   time.Duration // for how long those with the default TTL are observed: a multiple of the time between renewals
	idle      time.Duration // for how long those with a long TTL are
	handOvers int           // at least
	changes   int           // at least
	busy      time.Duration // how long hand-overs, changes and reads go on, at least
	sustained time.Duration // how long steady changes go on

	sizeLimit time.Duration // for one line of a table
	limit     time.Duration // for all of them
}

var (
	fullAmounts = amounts{
		locks:    []int{1_000, 10_000, 100_000},
		sessions: []int{10, 100, 1_000},
		waiters:  []int{10, 100, 1_000, 10_000},
		clients:  []int{0, 1, 10, 100, 1_000},
		watchers: []int{10, 100, 1_000, 10_000},
		names:    []int{10_000},
		crowd:    1_000, renewed: locker.DefaultTTL, idle: 2 * time.Second, handOvers: 50, changes: 10, busy: time.Second, sustained: 20 * time.Second,
		sizeLimit: 100 * time.Second, limit: 8 * time.Minute,
	}
	quickAmounts = amounts{
		locks:    []int{1_000},
		sessions: []int{10},
		waiters:  []int{10, 50},
		clients:  []int{0, 10},
		watchers: []int{10, 100},
		names:    []int{100},
		crowd:    20, renewed: locker.DefaultTTL / 3, idle: time.Second, handOvers: 10, changes: 3, busy: 300 * time.Millisecond, sustained: time.Second,
		sizeLimit: 20 * time.Second, limit: 55 * time.Second,
	}
)

// study is a table of -scale: what something costs at growing sizes.
type study struct {
	title   string
	counted string // what there are so many of
	sizes   []int
	crowd   int      // how many of them are clients, at most; 0 for all
	columns []figure // by their headings
	measure func(ctx context.Context, s *site, n int) (figures, error)
}

// studies returns the tables.
func studies(a amounts) []study {
	return []study{
		{
			title: "Locks held by one client", counted: "locks", sizes: a.locks, measure: a.measureLocks,
			columns: []figure{heapPerLock, etcdPerLock, databasePerLock, messagesPerLocks, bytesPerItem, etcdBusy},
		},
		{
			title: "Sessions of one client, without locks", counted: "sessions", sizes: a.sessions, measure: a.measureSessions,
			columns: []figure{memoryPerSession, etcdPerSession, databasePerSession, messagesPerSession, bytesPerItem, etcdBusy},
		},
		{
			title: "Waiters for one name", counted: "waiters", sizes: a.waiters, crowd: a.crowd, measure: a.measureWaiters,
			columns: []figure{handOverTime, messagesPerHandOver, cpuPerHandOver, sortedRead, memoryPerClient, etcdPerClient, messagesPerWaiter, etcdBusy},
		},
		{
			title: "Idle clients, each with a connection, a session and a lock", counted: "clients", sizes: a.clients, measure: a.measureClients,
			columns: []figure{messagesPerClient, bytesPerItem, etcdBusy, memoryPerClient, etcdPerClient},
		},
		{
			title: "Watchers of one prefix", counted: "watchers", sizes: a.watchers, measure: a.measureWatchers,
			columns: []figure{changeTime, cpuPerChange, receivedPerChange, bytesPerChange, memoryPerWatcher, etcdPerWatcher, idleSent, idleBytes, etcdBusy},
		},
		{
			title: "Held names of which one changes its value every 10 ms, in a Cache", counted: "names", sizes: a.names, measure: a.measureSustained,
			columns: []figure{changeRate, lag50, lag99, etcdCPU, clientCPU, messageRate, byteRate},
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
	if rep != nil {
		rep.quick = s.quick
		err = errors.Join(err, rep.writeMarkdown(stdout))
	}
	if err != nil {
		return err
	}
	if len(rep.failed) > 0 {
		return fmt.Errorf("not measured: %s", strings.Join(rep.failed, "; "))
	}
	return nil
}

// measureScale measures all tables. If a size cannot be measured, that is reported, and the
// larger ones of its table are left out. If ctx ends, it returns what was measured by then,
// and an error.
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
				break
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
		if ctx.Err() != nil {
			break
		}
	}
	rep.took, rep.machine.Etcd = time.Since(began).Round(time.Second), r.version
	return rep, context.Cause(ctx)
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
	defer func() {
		if closing := s.close(); err == nil {
			err = closing
		}
	}()
	f, err = st.measure(ctx, s, n)
	return f, withCause(ctx, err)
}

// cells formats one line of the table. What is unknown is a dash.
func (st study) cells(n int, f figures) []string {
	size := thousands(n)
	if st.crowd > 0 && n > st.crowd {
		size += fmt.Sprintf(", of which %s are clients", thousands(st.crowd))
	}
	cells := []string{size}
	for _, column := range st.columns {
		if value, ok := f[column]; ok && !math.IsNaN(value) {
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
