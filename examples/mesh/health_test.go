//go:build unix

package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCheckCommand_PassesIfItExitsWithZero(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{
		"true":                         "",
		"exit 3":                       "health check failed: exit status 3",
		"echo first; echo last; false": "health check failed: exit status 1: last",
		"no-such-command":              "not found",
		"printf 'a\\033[2Jb'; false":   "exit status 1: a?[2Jb",
		"sleep 2 &":                    "", // although another process still has the output open
		"yes no | head -c 100000; echo; echo end; exit 4": "exit status 4: end",
	} {
		err := checkCommand(command)(t.Context())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", command, err, want)
		}
	}
}

func TestTail_KeepsTheEndOfTheOutput(t *testing.T) {
	t.Parallel()
	var out tail
	for _, text := range []string{"begin", strings.Repeat("x", 5000), "", "end"} {
		if n, err := out.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("Write of %d bytes returned %d, %v", len(text), n, err)
		}
	}
	if want := strings.Repeat("x", 4096-3) + "end"; string(out) != want {
		t.Errorf("kept %d bytes: %.20s…", len(out), out)
	}
}

func TestCheckCommand_IsKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	// A FIFO ends when all processes that could write to it have ended.
	fifo := t.TempDir() + "/alive"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- checkCommand("exec 3> " + fifo + "; sleep 60 & sleep 60")(ctx) }()
	alive, err := os.Open(fifo) // returns once the command has opened it too
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	cancel()
	if err := <-result; err == nil {
		t.Error("the check passed")
	}
	if err := alive.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(alive); err != nil {
		t.Errorf("a child is still alive: %v", err)
	}
}

func TestCheckURL_PassesWithAStatusOf200To299(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/unhealthy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/silent":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := checkURL(server.URL)(ctx); err != nil {
		t.Error(err)
	}
	if err := checkURL(server.URL + "/unhealthy")(ctx); err == nil || !strings.Contains(err.Error(), "503 Service Unavailable") {
		t.Errorf("unhealthy: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := checkURL(server.URL + "/silent")(short); err == nil {
		t.Error("the check passed without an answer")
	}
	server.Close()
	if err := checkURL(server.URL)(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("server closed: %v", err)
	}
}
