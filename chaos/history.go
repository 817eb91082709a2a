package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// op is what a client process did or observed.
type op string

const (
	opLock    op = "lock"
	opTry     op = "try"
	opErr     op = "err"    // Err
	opEnded   op = "ended"  // the context of a hold ended, but not by Unlock
	opCommit  op = "commit" // put of an element of the guarded set, by Commit
	opStale   op = "stale"  // the same after the hold, by Guard in a transaction
	opValue   op = "value"  // SetValue
	opAdd     op = "add"    // increment of the fenced resource
	opUnlock  op = "unlock"
	opClose   op = "close"   // Client.Close
	opSaw     op = "saw"     // a watch yielded a state
	opHolders op = "holders" // Client.Holders
	opCached  op = "cached"  // Cache.Holders
	opWatched op = "watched" // a watch began, or failed
	opGap     op = "gap"     // the process noticed that it had not run
	opSize    op = "size"    // memory and goroutines of the process
	opBye     op = "bye"     // the process ended normally
)

// outcome is the result of a call; empty while it is not known.
type outcome string

const (
	unknown outcome = ""
	ok      outcome = "ok"
	failed  outcome = "failed" // had no effect
	lost    outcome = "lost"   // failed, because the hold was lost
	unsure  outcome = "unsure" // returned an error, and may have had an effect
)

// call is one record of a client process. It is written before the call and again when it
// returns, so that the history of a killed process shows the calls in flight.
type call struct {
	Process string  `json:"p"`
	ID      int64   `json:"id"`
	Op      op      `json:"op"`
	Worker  int     `json:"w,omitempty"`
	Name    string  `json:"n,omitempty"`
	Mode    mode    `json:"m,omitempty"`
	And     []item  `json:"and,omitempty"` // what is locked together with Name
	Hold    int64   `json:"h,omitempty"`   // ID of the call that acquired the hold
	Token   int64   `json:"t,omitempty"`
	Start   instant `json:"s"`
	End     instant `json:"e,omitempty"`  // 0 if it did not return
	By      instant `json:"by,omitempty"` // when its context ends
	Outcome outcome `json:"o,omitempty"`
	Reason  string  `json:"r,omitempty"`
	Value   int64   `json:"v,omitempty"` // the value read, a revision, or a size
	Count   int64   `json:"c,omitempty"`
	Tokens  []int64 `json:"ts,omitempty"` // of all holders that were seen
	Until   int64   `json:"u,omitempty"`  // what was seen is of a revision from Value to this
	Age     int64   `json:"a,omitempty"`  // of a Cache, in nanoseconds
}

// items returns all that a call locks.
func (c call) items() []item { return append([]item{{c.Name, c.Mode}}, c.And...) }

// ref identifies a call within a round. It is also the value of the entry of a lock call.
func (c call) ref() string { return fmt.Sprintf("%s#%d", c.Process, c.ID) }

// holds reports whether the call began a hold.
func (c call) holds() bool { return (c.Op == opLock || c.Op == opTry) && c.Outcome == ok }

// recorder writes calls as lines of JSON, each with one write, so that a kill loses none.
type recorder struct {
	process string
	last    atomic.Int64

	mu  sync.Mutex // guards out and err
	out io.Writer
	err error // of lines that could not be written
}

// begin assigns an ID and a start time to a call, and writes it.
func (r *recorder) begin(c call) call {
	c.Process, c.ID = r.process, r.last.Add(1)
	c.Start = now()
	r.write(c)
	return c
}

// end writes a call that has returned.
func (r *recorder) end(c call) call {
	c.End = now()
	r.write(c)
	return c
}

// note writes a call or an event that is already over.
func (r *recorder) note(c call) {
	c.Process, c.ID = r.process, r.last.Add(1)
	if c.Start == 0 {
		c.Start = now()
	}
	c.End = max(c.End, c.Start)
	r.write(c)
}

func (r *recorder) write(c call) {
	line, err := json.Marshal(c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		_, err = r.out.Write(append(line, '\n'))
	}
	r.err = errors.Join(r.err, err)
}

// readCalls reads the last record of each call of a process, ordered by start.
func readCalls(path string) ([]call, error) {
	last := make(map[int64]call)
	err := eachLine(path, func(line []byte) error {
		var c call
		if err := json.Unmarshal(line, &c); err != nil {
			return err
		}
		last[c.ID] = c
		return nil
	})
	calls := make([]call, 0, len(last))
	for _, c := range last {
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(a, b call) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.ID, b.ID)) })
	return calls, err
}

// eachLine calls f for each complete line of a file.
func eachLine(path string, f func([]byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for reader := bufio.NewReader(file); ; {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // a line without a newline was cut off when the process was killed
		}
		if err == nil {
			err = f(bytes.TrimSpace(line))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}
