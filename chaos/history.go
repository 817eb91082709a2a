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

// op is what a client process did, or what happened to it.
type op string

const (
	opLock    op = "lock"
	opTry     op = "try"
	opErr     op = "err"     // a look at Err
	opEnded   op = "ended"   // the context of a hold has ended, not by Unlock
	opCommit  op = "commit"  // an element of the guarded set, by Commit
	opStale   op = "stale"   // the same by Guard in a transaction, after the hold
	opValue   op = "value"   // SetValue
	opAdd     op = "add"     // one more in the fenced resource
	opUnlock  op = "unlock"  //
	opClose   op = "close"   // Close of the client
	opSaw     op = "saw"     // a state that a watch yielded
	opWatched op = "watched" // a watch has begun
	opGap     op = "gap"     // the process did not run, it noticed
	opSize    op = "size"    // of its memory, and how many goroutines it has
	opBye     op = "bye"     // it has ended in good order
)

// outcome is what became of a call; empty while nobody knows.
type outcome string

const (
	unknown outcome = ""
	ok      outcome = "ok"
	failed  outcome = "failed" // without effect
	lost    outcome = "lost"   // failed, because the hold was lost
	unsure  outcome = "unsure" // it returned, and may or may not have had an effect
)

// call is one record of a client process. It is written before the call, and again when more is known
// of it: of a process that was killed in between, the first remains.
type call struct {
	Process string  `json:"p"`
	ID      int64   `json:"id"`
	Op      op      `json:"op"`
	Worker  int     `json:"w,omitempty"`
	Name    string  `json:"n,omitempty"`
	Hold    int64   `json:"h,omitempty"` // ID of the call that acquired the hold
	Token   int64   `json:"t,omitempty"`
	Start   instant `json:"s"`
	End     instant `json:"e,omitempty"`  // 0 if it has not returned
	By      instant `json:"by,omitempty"` // when its context ends
	Outcome outcome `json:"o,omitempty"`
	Reason  string  `json:"r,omitempty"`
	Value   int64   `json:"v,omitempty"` // what was read, or a revision, or a size
	Count   int64   `json:"c,omitempty"`
}

// who names a call throughout a round; it is also the value of the entry that a lock makes.
func (c call) who() string { return fmt.Sprintf("%s#%d", c.Process, c.ID) }

// holds reports whether the call began a hold.
func (c call) holds() bool { return (c.Op == opLock || c.Op == opTry) && c.Outcome == ok }

// recorder writes the calls of a process as lines of JSON, each with one write, so that those before
// the end of the process are in the file.
type recorder struct {
	process string
	last    atomic.Int64

	mu  sync.Mutex // guards out: one line at a time
	out io.Writer
	err error // of the first line that could not be written
}

// begin writes a call that is about to be made, and gives it its ID and its time.
func (r *recorder) begin(c call) call {
	c.Process, c.ID = r.process, r.last.Add(1)
	c.Start = now()
	r.write(c)
	return c
}

// end writes what became of a call.
func (r *recorder) end(c call) call {
	c.End = now()
	r.write(c)
	return c
}

// note writes what happened at one moment.
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

// readCalls reads what a process has written, by the time at which the calls began.
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

// eachLine calls f for each line of a file that was written to its end.
func eachLine(path string, f func([]byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for reader := bufio.NewReader(file); ; {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what follows the last newline was cut off by the end of the process
		}
		if err == nil {
			err = f(bytes.TrimSpace(line))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
}
