package locktest

import (
	"fmt"
	"iter"
	"testing"

	"github.com/jagregory/locker/v2"
)

// Order checks what holds for every sequence of states: revisions grow, and each
// state of a name differs from the one before.
type Order struct {
	revision int64
	Last     map[string]locker.State
}

// Check returns an error if state may not follow those that were checked before.
func (o *Order) Check(state locker.State) error {
	if o.Last == nil {
		o.Last = make(map[string]locker.State)
	}
	last, seen := o.Last[state.Name]
	switch {
	case state.Name == "":
		return fmt.Errorf("a state without a name: %+v", state)
	case state.Revision < o.revision || seen && state.Revision == last.Revision:
		return fmt.Errorf("out of order: %+v after revision %d, last %+v", state, o.revision, last)
	case seen && state.Held == last.Held && state.Holder == last.Holder && state.Holders == last.Holders:
		return fmt.Errorf("reported twice: %+v after %+v", state, last)
	case !state.Held && state.Holder != locker.Holder{Name: state.Name}:
		return fmt.Errorf("nobody holds it, but there is a holder: %+v", state)
	}
	o.revision, o.Last[state.Name] = state.Revision, state
	return nil
}

// Reader reads a watch state by state. The watch begins with the first call.
type Reader struct {
	t testing.TB
	Order
	Next func() (locker.State, error, bool)
}

// Read returns a Reader of a watch, which ends with the test.
func Read(t testing.TB, states iter.Seq2[locker.State, error]) *Reader {
	next, stop := iter.Pull2(states)
	t.Cleanup(stop)
	return &Reader{t: t, Next: next}
}

// State returns the next state.
func (r *Reader) State() locker.State {
	r.t.Helper()
	state, err, ok := r.Next()
	if err != nil || !ok {
		r.t.Fatalf("no state, but %v (%v)", err, ok)
	}
	if err := r.Check(state); err != nil {
		r.t.Fatal(err)
	}
	return state
}

// Held returns the next state, in which l must hold its name.
func (r *Reader) Held(l *locker.Lock) locker.State {
	r.t.Helper()
	state := r.State()
	if !state.Held || state.Holder != HolderBy(l) {
		r.t.Fatalf("state = %+v, want it held by %+v", state, HolderBy(l))
	}
	return state
}

// Free returns the next state, in which nobody must hold name.
func (r *Reader) Free(name string) locker.State {
	r.t.Helper()
	state := r.State()
	if state.Held || state.Name != name {
		r.t.Fatalf("state = %+v, want %q to be free", state, name)
	}
	return state
}

// Until reads up to the first state with that value.
func (r *Reader) Until(value string) locker.State {
	r.t.Helper()
	for {
		if state := r.State(); state.Value == value {
			return state
		}
	}
}

// End reads up to the end of the watch, and returns its error.
func (r *Reader) End() error {
	r.t.Helper()
	for {
		state, err, ok := r.Next()
		if !ok {
			r.t.Fatal("it ended without an error")
		}
		if err == nil {
			continue
		}
		if state.Held {
			r.t.Errorf("a state came with the error: %+v", state)
		}
		if _, _, more := r.Next(); more {
			r.t.Error("the error was not the last thing")
		}
		return err
	}
}
