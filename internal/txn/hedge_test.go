package txn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

const (
	testDelay = 400 * time.Millisecond // the hedge delay of these tests
	moment    = 50 * time.Millisecond  // how long an attempt takes
	never     = time.Duration(-1)
)

var (
	errPassing = status.Error(codes.Unavailable, "passing")
	errRefused = status.Error(codes.PermissionDenied, "refused")
)

// requests is a Store in a bubble, with the attempts that were made through it.
type requests struct {
	*Store
	t     *testing.T
	start time.Time

	mu    sync.Mutex // guards what follows
	tried []*try
}

// try is one attempt at a request: when it began and ended, relative to the start.
type try struct{ began, ended time.Duration }

// inBubble runs f in a bubble, as a task of the client. Everything that f starts must end.
func inBubble(t *testing.T, f func(t *testing.T, r *requests)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &requests{t: t, start: time.Now()}
		base, stop := context.WithCancel(context.Background())
		r.Store = New(Config{
			Tasks:       new(tasks.Group),
			Base:        base,
			HedgeDelay:  testDelay,
			InFlight:    InFlight,
			Closed:      func() error { return nil },
			Explain:     func(err error) error { return err },
			Interrupted: func(ctx context.Context) error { return Ended(ctx, nil) },
		})
		r.Tasks.Begin()
		t.Cleanup(func() {
			stop()
			r.Tasks.End()
			r.Tasks.Join()
		})
		f(t, r)
	})
}

func (r *requests) now() time.Duration { return time.Since(r.start) }

// at returns when d has passed since the start, and everything that happens at that time has happened.
func (r *requests) at(d time.Duration) {
	time.Sleep(time.Until(r.start.Add(d)))
	synctest.Wait()
}

// idle checks that no task is left except the test itself.
func (r *requests) idle() {
	r.t.Helper()
	before := r.now()
	r.Tasks.End()
	r.Tasks.Join()
	r.Tasks.Begin()
	if took := r.now() - before; took != 0 {
		r.t.Errorf("something went on for %v", took)
	}
	r.budget.mu.Lock()
	defer r.budget.mu.Unlock()
	if r.budget.fresh != 0 {
		r.t.Errorf("the budget still counts %d hedges", r.budget.fresh)
	}
}

// step is the result of one attempt: after a while, relative to its beginning, an answer or an error.
type step struct {
	after  time.Duration
	answer string
	err    error
}

var silence = step{after: never}

// hedge makes a request whose n-th attempt has the n-th step as its result, and any further attempt the last one.
func (r *requests) hedge(ctx context.Context, allowed, late time.Duration, steps ...step) (string, error) {
	return hedge(ctx, r.Store, allowed, late, func(ctx context.Context) (string, error) {
		mine := &try{began: r.now(), ended: never}
		r.mu.Lock()
		s := steps[min(len(r.tried), len(steps)-1)]
		r.tried = append(r.tried, mine)
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			mine.ended = r.now()
		}()
		if s.after == never {
			<-ctx.Done()
			return "", ctx.Err()
		}
		if err := backoff.Sleep(ctx, s.after); err != nil {
			return "", err
		}
		return s.answer, s.err
	})
}

// tries checks when the attempts began and ended.
func (r *requests) tries(want ...try) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := make([]try, len(r.tried))
	for i, a := range r.tried {
		got[i] = *a
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("the attempts began and ended at %v, want %v", got, want)
	}
}

// returned checks what a request returned, and when.
func (r *requests) returned(answer string, err error, want string, wantErr error, when time.Duration) {
	r.t.Helper()
	if answer != want || !errors.Is(err, wantErr) {
		r.t.Errorf("it returned %q, %v, want %q, %v", answer, err, want, wantErr)
	}
	if now := r.now(); now != when {
		r.t.Errorf("it returned after %v, want %v", now, when)
	}
	synctest.Wait()
}

func TestHedge_AnAnswerInTimeIsThatOfTheOnlyAttempt(t *testing.T) {
	const allowed = 3 * time.Second
	for name, s := range map[string]step{
		"answer":  {after: testDelay + allowed - 1, answer: "first"},
		"refusal": {after: testDelay + allowed - 1, err: errRefused},
		"failure": {after: testDelay + allowed - 1, err: errPassing},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				answer, err := r.hedge(t.Context(), allowed, time.Hour, s)
				r.returned(answer, err, s.answer, s.err, s.after)
				r.at(time.Minute)
				r.tries(try{0, s.after})
				r.idle()
			})
		})
	}
}

func TestHedge_ASecondAttemptAnswersForASilentOne(t *testing.T) {
	const allowed = 300 * time.Millisecond
	const second = testDelay + allowed
	for _, late := range []time.Duration{0, time.Second} {
		for _, s := range []step{{after: moment, answer: "second"}, {after: moment, err: errRefused}} {
			t.Run(fmt.Sprint(late, s.err), func(t *testing.T) {
				inBubble(t, func(t *testing.T, r *requests) {
					answer, err := r.hedge(t.Context(), allowed, late, silence, s)
					r.returned(answer, err, s.answer, s.err, second+moment+late)
					r.tries(try{0, second + moment + late}, try{second, second + moment})
					r.idle()
				})
			})
		}
	}
}

func TestHedge_AFirstAttemptThatIsLateHasTheTimeToBeAnswered(t *testing.T) {
	inBubble(t, func(t *testing.T, r *requests) {
		answer, err := r.hedge(t.Context(), 0, time.Second, step{after: testDelay + 3*moment, answer: "same"}, step{after: moment, answer: "same"})
		r.returned(answer, err, "same", nil, testDelay+3*moment)
		r.tries(try{0, testDelay + 3*moment}, try{testDelay, testDelay + moment})
		r.at(time.Minute)
		r.idle()
	})
}

func TestHedge_HasTwoAttemptsAtMostAtGrowingIntervals(t *testing.T) {
	const allowed = 600 * time.Millisecond
	const length = 10 * time.Minute
	for name, replacement := range map[string]step{"silent": silence, "failing": {err: errPassing}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				ctx, cancel := context.WithTimeout(t.Context(), length)
				defer cancel()
				_, err := r.hedge(ctx, allowed, 0, silence, replacement)
				r.returned("", err, "", context.DeadlineExceeded, length)
				r.idle()
				var intervals []time.Duration
				for i, a := range r.tried[1:] {
					if i > 0 && a.began < r.tried[i].ended {
						t.Errorf("an attempt began after %v, but the one it replaced ended after %v", a.began, r.tried[i].ended)
					}
					intervals = append(intervals, a.began-r.tried[i].began)
				}
				const s = time.Second
				want := []time.Duration{s, s, s, s, 2 * s, 4 * s, 8 * s, 16 * s}
				for len(want) < len(intervals) {
					want = append(want, longestHedgeInterval+allowed)
				}
				if !slices.Equal(intervals, want) {
					t.Errorf("the attempts began in intervals of %v", intervals)
				}
				if len(intervals) < 20 {
					t.Errorf("it was hedged only %d times in %v", len(intervals), length)
				}
			})
		})
	}
}

func TestHedge_AFailureOfTheFirstWaitsForTheSecond(t *testing.T) {
	const allowed = 600 * time.Millisecond
	const second = testDelay + allowed
	const failed = second + moment
	first := step{after: failed, err: errPassing}
	for name, this := range map[string]struct {
		steps  []step
		answer string
		err    error
		when   time.Duration
	}{
		"which answers":                        {[]step{first, {after: 2 * moment, answer: "second"}}, "second", nil, second + 2*moment},
		"which refuses":                        {[]step{first, {after: 2 * moment, err: errRefused}}, "", errRefused, second + 2*moment},
		"which fails":                          {[]step{first, {after: 2 * moment, err: errors.Join(errPassing)}}, "", errPassing, second + 2*moment},
		"which had failed, and is between two": {[]step{first, {err: errors.Join(errPassing)}}, "", errPassing, failed},
		"which is silent":                      {[]step{first, silence}, "", errPassing, second + testDelay + allowed},
		// A hedge that was replaced may run for longer.
		"which is silent for long": {[]step{{after: time.Minute, err: errPassing}, silence}, "", errPassing, time.Minute + testDelay + allowed},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				answer, err := r.hedge(t.Context(), allowed, time.Hour, this.steps...)
				r.returned(answer, err, this.answer, this.err, this.when)
				r.idle()
			})
		})
	}
}

func TestHedge_AFirstAttemptDoesNotWaitForAHedgeThatHasNotBegun(t *testing.T) {
	for name, s := range map[string]step{
		"answer":  {after: testDelay + moment, answer: "first"},
		"failure": {after: testDelay + moment, err: errPassing},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				r.budget.window = 0
				answer, err := r.hedge(t.Context(), 0, time.Hour, s)
				r.returned(answer, err, s.answer, s.err, s.after)
				r.at(time.Hour)
				r.tries(try{0, s.after})
				r.idle()
			})
		})
	}
}

func TestHedge_BeginsWhenThereIsRoom(t *testing.T) {
	inBubble(t, func(t *testing.T, r *requests) {
		r.budget.window, r.budget.fresh = 1, 1
		time.AfterFunc(testDelay*5/4, r.budget.leave)
		answer, err := r.hedge(t.Context(), 0, 0, silence, step{after: moment, answer: "second"})
		r.returned(answer, err, "second", nil, testDelay*3/2+moment)
		r.idle()
	})
}

func TestHedge_AnAnswerOfTheFirstGivesTheSecondTheTimeToBeAnswered(t *testing.T) {
	const answered = testDelay + moment
	first := step{after: answered, answer: "first"}
	for name, this := range map[string]struct {
		late   time.Duration
		second step
		when   time.Duration
	}{
		"none":                  {0, silence, answered},
		"in which it is":        {testDelay / 2, step{after: 2 * moment, answer: "second"}, testDelay + 2*moment},
		"in which it is not":    {testDelay / 2, silence, answered + testDelay/2},
		"in which it fails":     {testDelay / 2, step{after: 2 * moment, err: errPassing}, testDelay + 2*moment},
		"that is more than its": {time.Hour, silence, 2 * testDelay},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				answer, err := r.hedge(t.Context(), 0, this.late, first, this.second)
				r.returned(answer, err, "first", nil, this.when)
				r.tries(try{0, answered}, try{testDelay, this.when})
				r.idle()
			})
		})
	}
}

func TestHedge_WaitsForWhatOthersSend(t *testing.T) {
	inBubble(t, func(t *testing.T, r *requests) {
		done := r.carry(slowestLink) // bytes, which take a second
		time.AfterFunc(time.Second, func() { r.carry(2 * slowestLink) })
		time.AfterFunc(2*time.Second, done)
		// After a second there were three to go, and two when they had passed.
		answer, err := r.hedge(t.Context(), 0, 0, silence, step{after: moment, answer: "second"})
		r.returned(answer, err, "second", nil, 2*time.Second+testDelay+time.Second+moment)
		r.idle()
	})
}

func TestHedge_DoesNotWaitForWhatOthersHaveSent(t *testing.T) {
	inBubble(t, func(t *testing.T, r *requests) {
		time.AfterFunc(testDelay/2, r.carry(slowestLink))
		answer, err := r.hedge(t.Context(), 0, 0, silence, step{after: moment, answer: "second"})
		r.returned(answer, err, "second", nil, testDelay+moment)
		r.idle()
	})
}

func TestHedge_ReturnsWhenItsContextEnds(t *testing.T) {
	failing := step{err: errPassing}
	for name, this := range map[string]struct {
		when    time.Duration
		carried int64
		window  int
		steps   []step
	}{
		"before it hedges":              {testDelay / 2, 0, 1, []step{silence}},
		"with two under way":            {testDelay + moment, 0, 1, []step{silence}},
		"with a replacement under way":  {20 * time.Second, 0, 1, []step{silence}},
		"between two":                   {testDelay + moment, 0, 1, []step{silence, failing}},
		"while others send":             {testDelay + moment, slowestLink, 1, []step{silence}},
		"while there is no room":        {testDelay + moment, 0, 0, []step{silence}},
		"after the second has answered": {testDelay + 2*moment, 0, 1, []step{silence, {after: moment, answer: "second"}}},
		"after the first has failed":    {testDelay + 2*moment, 0, 1, []step{{after: testDelay + moment, err: errPassing}, silence}},
		"after the first has answered":  {testDelay + 2*moment, 0, 1, []step{{after: testDelay + moment, answer: "first"}, silence}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				defer r.carry(this.carried)()
				r.budget.window = this.window
				ctx, cancel := context.WithTimeout(t.Context(), this.when)
				defer cancel()
				answer, err := r.hedge(ctx, 0, time.Hour, this.steps...)
				if answer == "" && err == nil {
					t.Error("it returned neither an answer nor an error")
				}
				r.returned(answer, err, answer, err, this.when)
				r.idle()
			})
		})
	}
}

func TestHedgeBudget_TheWindowFollowsWhatHedgesAchieve(t *testing.T) {
	t.Parallel()
	const helped, useless, late = 1, 2, 3
	h := &budget{window: firstHedges}
	judge := func(what, n, want int) {
		t.Helper()
		for range n {
			h.judge(what != useless, what == late)
		}
		if h.window != want {
			t.Errorf("the window is %d, want %d", h.window, want)
		}
	}
	judge(helped, 1, 2*firstHedges)
	judge(useless, 5, 2*firstHedges)
	judge(late, 1, firstHedges)
	judge(late, 1, fewestHedges)
	judge(late, 5, fewestHedges)
	judge(helped, 20, mostHedges)
	judge(late, 1, mostHedges/2)
}

func TestHedgeBudget_CountsWhatBecameOfEachHedge(t *testing.T) {
	for name, this := range map[string]struct {
		first, second step
		window        int
	}{
		"it answered":                   {silence, step{after: moment, answer: "second"}, 2 * firstHedges},
		"it was refused":                {silence, step{after: moment, err: errRefused}, 2 * firstHedges},
		"the first answered":            {step{after: testDelay + moment, answer: "first"}, silence, firstHedges / 2},
		"the first was refused":         {step{after: testDelay + moment, err: errRefused}, silence, firstHedges / 2},
		"both answered":                 {step{after: testDelay + moment, answer: "first"}, step{after: 2 * moment}, firstHedges / 2},
		"the first failed":              {step{after: testDelay + moment, err: errPassing}, step{after: 2 * moment}, 2 * firstHedges},
		"both failed":                   {step{after: testDelay + moment, err: errPassing}, step{after: 2 * moment, err: errPassing}, firstHedges},
		"it failed, the first answered": {step{after: testDelay + 2*moment, answer: "first"}, step{after: moment, err: errPassing}, firstHedges},
		"there was none":                {step{after: moment, answer: "first"}, silence, firstHedges},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *requests) {
				_, _ = r.hedge(t.Context(), 0, time.Second, this.first, this.second)
				r.idle()
				if r.budget.window != this.window {
					t.Errorf("the window is %d, want %d", r.budget.window, this.window)
				}
			})
		})
	}
}

func TestHedgeBudget_AHedgeTakesNoRoomAfterTheHedgeDelay(t *testing.T) {
	const allowed = time.Minute // so that the first hedge lives on
	inBubble(t, func(t *testing.T, r *requests) {
		r.budget.window = 1
		ctx, cancel := context.WithCancel(t.Context())
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() { _, _ = r.hedge(ctx, allowed, 0, silence) })
			time.Sleep(moment)
		}
		begun := func(want int) {
			t.Helper()
			r.mu.Lock()
			defer r.mu.Unlock()
			if n := len(r.tried); n != want {
				t.Errorf("after %v there were %d attempts, want %d", r.now(), n, want)
			}
		}
		r.at(allowed + testDelay)
		begun(3)
		r.at(allowed + 2*testDelay)
		begun(3) // the other looks for room at intervals
		r.at(allowed + 2*testDelay + moment)
		begun(4)
		cancel()
		both.Wait()
		r.idle()
	})
}

func TestHedgeBudget_AHedgeThatHasEndedTakesNoRoom(t *testing.T) {
	inBubble(t, func(t *testing.T, r *requests) {
		second := step{after: moment, answer: "second"}
		for range 3 {
			r.budget.window = 1
			began := r.now()
			answer, err := r.hedge(t.Context(), 0, 0, silence, second, silence, second, silence, second)
			r.returned(answer, err, "second", nil, began+testDelay+moment)
		}
		r.idle()
	})
}
