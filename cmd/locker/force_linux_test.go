package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestForceUnlock_AsksOnATerminal(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, worker(t, b), "a", "one")
	person, program := pseudoTerminal(t)
	t.Cleanup(func() { _, _ = person.Close(), program.Close() })
	for _, answer := range []string{"no", "", "yes"} {
		if _, err := io.WriteString(person, answer+"\n"); err != nil {
			t.Fatal(err)
		}
		got := callWith(t, program, "--endpoints", b.Server.Endpoints()[0], "force-unlock", "a", "--token", fmt.Sprint(l.Token()))
		if !strings.Contains(got.stderr, "Type yes") {
			t.Errorf("no question: %s", got.stderr)
		}
		if answer == "yes" {
			if got.code != 0 {
				t.Errorf("exit code %d after yes, %s", got.code, got.stderr)
			}
			b.WantNoEntries(t)
			return
		}
		if got.code != 1 || got.stdout != "" {
			t.Errorf("exit code %d after %q, %q", got.code, answer, got.stdout)
		}
		b.WantHeldAlone(t, l)
	}
}

func TestForceUnlock_ThatIsInterruptedRemovesNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, worker(t, b), "a", "one")
	person, program := pseudoTerminal(t)
	t.Cleanup(func() { _, _ = person.Close(), program.Close() })
	ctx, interrupt := context.WithCancel(locktest.Within(t))
	r, w := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- executeUntil(ctx, []string{"--endpoints", b.Server.Endpoints()[0], "force-unlock", "a", "--token", fmt.Sprint(l.Token())}, program, io.Discard, w)
		_ = w.Close()
	}()
	var said bytes.Buffer
	for chunk := make([]byte, 1000); !strings.Contains(said.String(), "Type yes"); {
		n, err := r.Read(chunk)
		if said.Write(chunk[:n]); err != nil {
			t.Fatal(err, &said)
		}
	}
	interrupt()
	rest, _ := io.ReadAll(r)
	if got := locktest.Receive(t, code); got != 1 || !strings.Contains(string(rest), "nothing was removed: interrupted") {
		t.Errorf("exit code %d, %s", got, rest)
	}
	b.WantHeldAlone(t, l)
	_, _ = io.WriteString(person, "\n") // the read from a terminal ends with its line
}
