package ui

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/livepage"
)

const (
	// lookInterval is the interval between two looks at etcd while the page knows of no change.
	// Changes of holders are known at once, those of waiters are found by looking.
	lookInterval = 2 * time.Second
	// leastPause is the least time between two looks. A look at many names takes longer, and
	// then the pause is longer as well.
	leastPause = 200 * time.Millisecond
	// lookTimeout bounds a look.
	lookTimeout = 20 * time.Second
	// maxChanges is how many changes of a name are kept, and maxHistories of how many names.
	// Of a value, a change keeps as many characters as valueKept.
	valueKept    = 60
	maxChanges   = 20
	maxHistories = 20000
)

// board is what the page knows of all queues.
type board struct {
	mu        sync.Mutex // guards what follows
	looked    time.Time  // when the last look that was answered began
	number    int        // of looks that were answered
	queues    map[string]*queue
	histories map[string][]change // the oldest first
	newest    picture
}

// picture is the board at one moment. What it points to does not change any more.
type picture struct {
	taken   time.Time
	names   []*queue // by name
	changed chan struct{}
}

// queue is the queue of a name.
type queue struct {
	Name  string
	Seats []seat // the oldest first
	Held  int    // how many of them hold the name
	Odd   bool   // one of them is marked
}

// seat is an entry in a queue, and since when it is there.
type seat struct {
	locker.Entry
	Since time.Time // at which it began to hold or to wait, or else the page began to watch
	Exact bool      // the page has seen it begin
}

// change is a change of who holds a name. It is kept for long, so it has only what is shown.
type change struct {
	Time  time.Time
	What  string // "holds", "gone", "value" or "released here"
	Name  string
	Token int64
	Value string // the beginning of it
	Owner string // as it is shown, "" if it is not known
}

func changeOf(now time.Time, what string, e locker.Entry) change {
	c := change{Time: now, What: what, Name: e.Name, Token: e.Token, Value: beginningOf(e.Value, valueKept)}
	if e.Owner != (locker.Owner{}) {
		c.Owner = beginningOf(show.Process(e.Owner), valueKept) + " (" + cmp.Or(show.Beginning(e.Owner.Program, valueKept), show.Unknown) + ")"
	}
	return c
}

// beginningOf returns at most so many characters of a text, as they are.
func beginningOf(text string, most int) string {
	for i := range text {
		if most--; most < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

func newBoard() *board {
	return &board{
		queues:    make(map[string]*queue),
		histories: make(map[string][]change),
		newest:    picture{changed: make(chan struct{})},
	}
}

// look reads all queues.
func (b *board) look(ctx context.Context, client *locker.Client) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	began := time.Now()
	entries, err := client.Queues(ctx, "")
	if err == nil {
		b.apply(began, entries)
	}
	return err
}

// follow looks again and again, until ctx ends: when a holder has changed, and from time to
// time.
func (b *board) follow(ctx context.Context, client *locker.Client, cache *locker.Cache, log *slog.Logger) {
	for failed := ""; ; {
		changed, began := cache.Changed(), time.Now()
		switch err := b.look(ctx, client); {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != failed:
			failed = err.Error()
			log.Warn("the page is not current", "error", err)
		case err == nil:
			failed = ""
		}
		pause := min(max(4*time.Since(began), leastPause), lookInterval)
		if !wait(ctx, nil, pause) || !wait(ctx, changed, lookInterval-pause) {
			return
		}
	}
}

// wait waits for a signal, or some time. It returns false if ctx ends first.
func wait(ctx context.Context, signal <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-signal:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// age returns how old the picture is, on both clocks: the monotonic one may have stood still
// while the machine slept.
func (b *board) age() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return max(now.Sub(b.looked), now.Round(0).Sub(b.looked.Round(0)))
}

// picture returns the newest picture.
func (b *board) picture() picture {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newest
}

// history returns the changes of a name, the newest first.
func (b *board) history(name string) []change {
	b.mu.Lock()
	defer b.mu.Unlock()
	changes := slices.Clone(b.histories[name])
	slices.Reverse(changes)
	return changes
}

// released notes that an entry was released by means of the page.
func (b *board) released(now time.Time, e locker.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note(changeOf(now, "released here", e))
}

// apply takes in all entries, by name, then by age, as they were read at a time.
func (b *board) apply(now time.Time, entries []locker.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Before(b.looked) {
		return // a look that began later was faster
	}
	b.looked = now
	b.number++
	queues, names, differs := make(map[string]*queue, len(b.queues)), make([]*queue, 0, len(b.queues)), b.number == 1
	for len(entries) > 0 {
		n := slices.IndexFunc(entries, func(e locker.Entry) bool { return e.Name != entries[0].Name })
		if n < 0 {
			n = len(entries)
		}
		old := b.queues[entries[0].Name]
		fresh := b.seated(now, old, entries[:n])
		differs = differs || fresh != old
		queues[fresh.Name], names = fresh, append(names, fresh)
		entries = entries[n:]
	}
	for name, old := range b.queues {
		if queues[name] == nil {
			differs = true
			b.compare(now, old, &queue{Name: name})
		}
	}
	if !differs {
		return
	}
	b.queues = queues
	b.forget()
	close(b.newest.changed)
	b.newest = picture{now, names, make(chan struct{})}
}

// seated returns the queue of a name that has these entries: the old one if it is the same.
// b.mu is held.
func (b *board) seated(now time.Time, old *queue, entries []locker.Entry) *queue {
	var before []seat
	if old != nil {
		before = old.Seats
	}
	fresh := &queue{Name: entries[0].Name, Seats: make([]seat, len(entries))}
	same := len(before) == len(entries)
	for i, e := range entries {
		s := seat{Entry: e, Since: now, Exact: b.number > 1}
		if known := find(before, e); known != nil {
			if known.Held == e.Held {
				s.Since, s.Exact = known.Since, known.Exact
			}
			same = same && known.Entry == e
		} else {
			same = false
		}
		if e.Held {
			fresh.Held++
		}
		fresh.Odd = fresh.Odd || len(marksOf(e)) > 0
		fresh.Seats[i] = s
	}
	if same {
		return old
	}
	b.compare(now, old, fresh)
	return fresh
}

// find returns the seat of an entry, nil if it is new. Seats are in the order of tokens.
func find(seats []seat, e locker.Entry) *seat {
	i := sort.Search(len(seats), func(i int) bool { return seats[i].Token >= e.Token })
	for ; i < len(seats) && seats[i].Token == e.Token; i++ {
		if seats[i].Key == e.Key {
			return &seats[i]
		}
	}
	return nil
}

// compare notes how the holders of a name differ. b.mu is held.
func (b *board) compare(now time.Time, old, fresh *queue) {
	if b.number == 1 {
		return // what the page has found, it has not seen begin
	}
	if old != nil {
		for _, s := range old.Seats[:old.Held] {
			if find(fresh.Seats, s.Entry) == nil {
				b.note(changeOf(now, "gone", s.Entry))
			}
		}
	}
	for _, s := range fresh.Seats[:fresh.Held] {
		var known *seat
		if old != nil {
			known = find(old.Seats, s.Entry)
		}
		switch {
		case known == nil || !known.Held:
			b.note(changeOf(now, "holds", s.Entry))
		case known.Value != s.Value:
			b.note(changeOf(now, "value", s.Entry))
		}
	}
}

// note adds a change to the history of its name. b.mu is held.
func (b *board) note(c change) {
	changes := b.histories[c.Name]
	if n := len(changes); n >= maxChanges {
		changes = append(make([]change, 0, maxChanges), changes[n-maxChanges+1:]...)
	}
	b.histories[c.Name] = append(changes, c)
}

// forget drops the histories of names that changed longest ago, if there are too many. b.mu is
// held.
func (b *board) forget() {
	if len(b.histories) <= maxHistories {
		return
	}
	last := func(name string) time.Time { return b.histories[name][len(b.histories[name])-1].Time }
	names := make([]string, 0, len(b.histories))
	for name := range b.histories {
		names = append(names, name)
	}
	slices.SortFunc(names, func(one, other string) int {
		return cmp.Or(last(one).Compare(last(other)), strings.Compare(one, other))
	})
	for _, name := range names[:len(names)-maxHistories/2] {
		delete(b.histories, name)
	}
}

// stale returns for how long etcd has not answered, if that makes the page stale.
func (b *board) stale() time.Duration {
	if age := b.age(); age > livepage.StaleAfter {
		return age.Round(time.Second)
	}
	return 0
}
