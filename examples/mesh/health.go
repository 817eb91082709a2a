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

// health is a node's own health, regardless of the services it needs. It depends on the
// health check, if there is one, and on whether somebody has marked the node unhealthy.
// The gate is open while the node is healthy.
type health struct {
	gate    *gate
	changed chan struct{} // has an element when the gate may have a new reason

	mu       sync.Mutex // guards the fields below
	override error      // errMarkedUnhealthy if somebody has marked it unhealthy, otherwise nil
	result   error      // of the last check
	checked  bool       // whether there has been a check
}

var (
	errMarkedUnhealthy = errors.New("marked unhealthy")
	errNotChecked      = errors.New("no health check has run yet")
)

func newHealth() *health {
	return &health{gate: newGate(errNotChecked), changed: make(chan struct{}, 1)}
}

// setHealthy marks the node healthy or unhealthy.
func (h *health) setHealthy(healthy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.override = errMarkedUnhealthy
	if healthy {
		h.override = nil
	}
	h.update()
}

// setResult sets the result of a check, nil if it passed.
func (h *health) setResult(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.result, h.checked = err, true
	h.update()
}

// update opens or closes the gate. h.mu is held.
func (h *health) update() {
	switch {
	case h.override != nil:
		h.gate.set(h.override)
	case !h.checked:
		h.gate.set(errNotChecked)
	default:
		h.gate.set(h.result)
	}
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// err returns why the node is unhealthy, or nil if it is healthy.
func (h *health) err() error {
	reason := h.gate.err()
	if reason == nil || errors.Is(reason, errNotChecked) {
		return reason
	}
	return &unhealthyError{reason}
}

// unhealthyError is the reason why a node is unhealthy. Its text may differ each time.
type unhealthyError struct{ reason error }

func (e *unhealthyError) Error() string { return e.reason.Error() }

// check is a health check. It returns nil if the node is healthy, and returns when ctx
// ends.
type check func(ctx context.Context) error

// alwaysHealthy is the check of a node that has none.
func alwaysHealthy(context.Context) error { return nil }

// runChecks runs the check immediately and then once per interval, until ctx ends. A
// check that exceeds the timeout has failed.
func (h *health) runChecks(ctx context.Context, c check, interval, timeout time.Duration) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		bounded, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("health check timed out after %v", timeout))
		err := c(bounded)
		if err != nil && bounded.Err() != nil {
			err = context.Cause(bounded)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		h.setResult(err)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// checkCommand returns a check that runs a shell command, which must exit with 0.
func checkCommand(command string) check {
	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, "sh", "-c", command)
		setProcessGroup(cmd)
		cmd.WaitDelay = time.Second // then the output is closed, even if another process still has it open
		var out tail
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		if err == nil || errors.Is(err, exec.ErrWaitDelay) { // it has exited with 0
			return nil
		}
		if last := lastLine(string(out)); last != "" {
			return fmt.Errorf("health check failed: %w: %s", err, last)
		}
		return fmt.Errorf("health check failed: %w", err)
	}
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(text []byte) (int, error) {
	const size = 4 << 10
	*t = append(*t, text[max(0, len(text)-size):]...)
	*t = slices.Delete(*t, 0, max(0, len(*t)-size))
	return len(text), nil
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return printable(text[strings.LastIndexByte(text, '\n')+1:])
}

// printable masks characters that a terminal might interpret.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}

// checkURL returns a check that requests a URL, which must return a status of 200 to 299.
func checkURL(url string) check {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("health check failed: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("health check failed: %w", err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)); err != nil {
			return fmt.Errorf("health check failed: %w", err)
		}
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			return fmt.Errorf("health check failed: %s", resp.Status)
		}
		return nil
	}
}
