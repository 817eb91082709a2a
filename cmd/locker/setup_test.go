package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// outcome is what a run of the program has left.
type outcome struct {
	code           int
	stdout, stderr string
}

// call runs the program against the etcd of b, without anything on its standard input.
func call(t *testing.T, b locktest.Bundle, args ...string) outcome {
	t.Helper()
	return callWith(t, strings.NewReader(""), append([]string{"--endpoints", strings.Join(b.Server.Endpoints(), ","), "--dial-timeout", "1m"}, args...)...)
}

// callWith runs the program.
func callWith(t *testing.T, stdin io.Reader, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := executeUntil(locktest.Within(t), args, stdin, &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

// want fails the test unless the program has ended with code, and said nothing on stderr if
// that is 0, and one sentence otherwise.
func (o outcome) want(t *testing.T, code int) outcome {
	t.Helper()
	switch lines := strings.Count(o.stderr, "\n"); {
	case o.code != code, code == 0 && lines > 0, code > 0 && (lines != 1 || !strings.HasPrefix(o.stderr, "locker: ")):
		t.Errorf("exit code %d, want %d; stderr:\n%s", o.code, code, o.stderr)
	}
	return o
}

// background is a run of the program that goes on until it is interrupted.
type background struct {
	lines     *bufio.Scanner // of stdout
	interrupt context.CancelFunc
	code      <-chan int
	stderr    *bytes.Buffer // to be read once the code is there
}

// start runs the program. It is interrupted at the end of the test, if it was not before.
func start(t *testing.T, args ...string) *background {
	t.Helper()
	r, w := io.Pipe()
	ctx, interrupt := context.WithCancel(locktest.Within(t))
	code, stderr := make(chan int, 1), new(bytes.Buffer)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code <- executeUntil(ctx, args, strings.NewReader(""), w, stderr)
		_ = w.Close()
	}()
	t.Cleanup(func() {
		interrupt()
		_ = r.Close()
		<-ended
	})
	return &background{bufio.NewScanner(r), interrupt, code, stderr}
}

// line returns the next line that the program prints.
func (p *background) line(t *testing.T) string {
	t.Helper()
	line := make(chan string, 1)
	go func() {
		if !p.lines.Scan() {
			line <- fmt.Sprintf("no line, but %v", p.lines.Err())
			return
		}
		line <- p.lines.Text()
	}()
	return locktest.Receive(t, line)
}

// wantInterrupted interrupts the program, and fails the test unless it ends without an error.
func (p *background) wantInterrupted(t *testing.T) {
	t.Helper()
	p.interrupt()
	if code := locktest.Receive(t, p.code); code != 0 {
		t.Errorf("exit code %d; stderr:\n%s", code, p.stderr)
	}
}

var (
	columns = regexp.MustCompile(` {2,}`)
	seconds = regexp.MustCompile(`\b\d+s/60s`)
	instant = regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z`)
)

// cells returns the cells of a table, separated by bars. What differs from run to run is
// replaced: times, this process, and what is left of a minute.
func cells(printed string) []string {
	host, _ := os.Hostname()
	text := strings.ReplaceAll(printed, fmt.Sprintf("%s:%d", host, os.Getpid()), "HERE")
	text = instant.ReplaceAllString(seconds.ReplaceAllString(text, "LEFT"), "THEN")
	return strings.Split(strings.TrimSuffix(columns.ReplaceAllString(text, "|"), "\n"), "\n")
}

// wantCells fails the test unless a table has these lines.
func wantCells(t *testing.T, printed string, want ...string) {
	t.Helper()
	if got := cells(printed); !slices.Equal(got, want) {
		t.Errorf("printed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// decode decodes one JSON document, and fails the test if there is anything else in it, or a
// field that is not known.
func decode[T any](t *testing.T, text string) (document T) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&document); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	if decoder.More() {
		t.Errorf("more than one document: %q", text)
	}
	return document
}

// worker returns a client of the program "worker".
func worker(t *testing.T, b locktest.Bundle) *locker.Client {
	return b.Client(t, locker.WithProgram("worker"))
}

// waits lets a lock wait until the queue of its name has n entries.
func waits(t *testing.T, b locktest.Bundle, n int, name, value string, opts ...locker.LockOption) <-chan locktest.Outcome {
	t.Helper()
	result := locktest.LockAsync(locktest.Within(t), worker(t, b), name, value, opts...)
	b.Queued(t, name, n)
	return result
}

// lease returns the lease of a lock, in hexadecimal.
func lease(l *locker.Lock) string { return fmt.Sprintf("%x", int64(locktest.LeaseOf(l))) }

// soon bounds what would take far longer if it were not bounded.
func soon(t *testing.T, began time.Time) {
	t.Helper()
	if took := time.Since(began); took > locktest.Prompt {
		t.Errorf("it took %v", took)
	}
}
