package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// health is a node's own health, whatever becomes of those it needs: its check, if it
// has one, and a switch. Its gate is open while both are well.
type health struct {
	gate    *gate
	changed chan struct{} // has an item when the gate may have a new reason

	mu       sync.Mutex // guards what follows
	off      error      // why it was switched off; nil if it is not
	checked  error      // what the last check found
	measured bool       // whether there was one
}

var (
	errSwitchedOff = errors.New("it was told that it is unhealthy")
	errNotChecked  = errors.New("it has not been checked yet")
)

func newHealth() *health {
	return &health{gate: newGate(errNotChecked), changed: make(chan struct{}, 1)}
}

// turn switches the health on or off.
func (h *health) turn(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.off = errSwitchedOff
	if on {
		h.off = nil
	}
	h.update()
}

// found sets what a check has found, nil if all is well.
func (h *health) found(problem error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checked, h.measured = problem, true
	h.update()
}

// update sets the gate. h.mu is held.
func (h *health) update() {
	switch {
	case h.off != nil:
		h.gate.set(h.off)
	case !h.measured:
		h.gate.set(errNotChecked)
	default:
		h.gate.set(h.checked)
	}
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// why returns why the gate is closed, nil if it is open.
func (h *health) why() error {
	reason := h.gate.why()
	if reason == nil || errors.Is(reason, errNotChecked) {
		return reason
	}
	return &unwellError{reason}
}

// unwellError says why a node is unhealthy, in words that may be others each time.
type unwellError struct{ reason error }

func (e *unwellError) Error() string { return e.reason.Error() }

// check returns nil if all is well. It ends with ctx.
type check func(ctx context.Context) error

// alwaysWell is the check of a node that has none.
func alwaysWell(context.Context) error { return nil }

// watch checks now and then once in each interval, until ctx ends. A check that takes
// longer than the limit has failed.
func (h *health) watch(ctx context.Context, c check, interval, limit time.Duration) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		bounded, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the check took longer than %v", limit))
		problem := c(bounded)
		if problem != nil && bounded.Err() != nil {
			problem = context.Cause(bounded)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.found(problem)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// checkCommand runs a command in a shell: well is what ends with 0.
func checkCommand(command string) check {
	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		inGroup(cmd)
		cmd.WaitDelay = time.Second // then its output is let go, whoever still has it open
		var out tail
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		if err == nil || errors.Is(err, exec.ErrWaitDelay) { // it has ended with 0
			return nil
		}
		if said := lastLine(string(out)); said != "" {
			return fmt.Errorf("its check failed: %w: %s", err, said)
		}
		return fmt.Errorf("its check failed: %w", err)
	}
}

// tail is the end of what was written to it.
type tail []byte

func (t *tail) Write(text []byte) (int, error) {
	const most = 4 << 10
	*t = append(*t, text[max(0, len(text)-most):]...)
	*t = slices.Delete(*t, 0, max(0, len(*t)-most))
	return len(text), nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return printable(text[strings.LastIndexByte(text, '\n')+1:])
}

// printable masks what a terminal might obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// checkURL asks for a page: well is a status of 200 to 299.
func checkURL(url string) check {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("its check failed: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("its check failed: %w", err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
			return fmt.Errorf("its check failed: %w", err)
		}
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			return fmt.Errorf("its check failed: %s", resp.Status)
		}
		return nil
	}
}
