package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var allMutants = flag.Bool("mutants", false, "test every mutant, not only those that are caught soonest")

// edit replaces a text that occurs exactly once in a file of the library.
type edit struct{ file, old, new string }

// mutant is a mistake that a library of locks could make.
type mutant struct {
	name  string
	edits []edit
	storm []string // flags: what shows it soonest
	soon  bool     // it is caught within seconds
}

var mutants = []mutant{
	{
		name:  "the deadline is counted from the receipt of the answer",
		edits: []edit{{"renew.go", "	r.ttl = resp.TTL\n", "	r.ttl, r.sent = resp.TTL, time.Now()\n"}},
		storm: []string{"-faults", "late-answer", "-hold", "20s"},
	},
	{
		name: "the clean-up runs on a context that has ended",
		edits: []edit{{
			"queue.go", "		_ = l.withdraw(l.client.lines.call(l.name), false) // it has done what can be done\n",
			"		ctx, cancel := context.WithCancel(l.session.life)\n		cancel()\n		_, _ = l.remove(ctx, nil)\n		l.depart(nil)\n",
		}},
		storm: []string{"-faults", "reset,compact"},
		soon:  true,
	},
	{
		name:  "unlock goes by the key alone",
		edits: []edit{{"queue.go", "txn{name: l.name, when: []*pb.Compare{l.standing()}, then: []*pb.RequestOp{remove(l.key)}}", "txn{name: l.name, then: []*pb.RequestOp{remove(l.key)}}"}},
		storm: []string{"-faults", "freeze-member-briefly", "-names", "4", "-hold", "200ms"},
	},
	{
		name:  "the own entry is not checked after waiting",
		edits: []edit{{"turn.go", "if string(ev.Kv.Key) == l.key {", "if false {"}},
		storm: []string{"-faults", "delete-entry"},
	},
	{
		name:  "the guard asks for existence instead of the create revision",
		edits: []edit{{"lease.go", `clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.token.Load())`, `clientv3.Compare(clientv3.CreateRevision(l.key), ">", 0)`}},
		storm: []string{"-faults", "delete-entry"},
		soon:  true,
	},
	{
		name: "nothing is read again after a watch was closed while waiting",
		edits: []edit{
			{"turn.go", "	for pause := (backoff{}); revision == 0 ||", "	closed := false\n	for pause := (backoff{}); revision == 0 ||"},
			{"turn.go", "			if pause.wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n		}\n		// First", "			if pause.wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n			closed = true\n		}\n		// First"},
			{"turn.go", "		if ahead, revision, err = l.look(ctx); err != nil {\n", "		if closed {\n			if unwatched != nil && pause.wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n			continue\n		}\n		if ahead, revision, err = l.look(ctx); err != nil {\n"},
		},
		storm: []string{"-faults", "lose-events", "-rest", "3s", "-names", "2"},
	},
	{
		name:  "nothing is read again after a watch of an observer was closed",
		edits: []edit{{"watch.go", "			update(sent, resp.Header.Revision, p.load(resp, f.name))\n", "			if pause == (backoff{}) {\n				update(sent, resp.Header.Revision, p.load(resp, f.name))\n			}\n"}},
		storm: []string{"-faults", "lose-events"},
	},
}

// TestTheHarnessCatchesMutants applies each mistake to a copy of the source and lets the harness run
// over it until it finds something.
func TestTheHarnessCatchesMutants(t *testing.T) {
	t.Parallel()
	const attempts = 4
	for _, m := range mutants {
		if !m.soon && !*allMutants {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			duration := 20 * time.Second
			if m.soon {
				duration = 8 * time.Second
			}
			program := buildMutant(t, m)
			began := time.Now()
			for seed := range attempts {
				if caught := runMutant(t, program, m, uint64(seed+1), duration); len(caught) > 0 {
					t.Logf("caught after %v by: %s", time.Since(began).Round(time.Second), strings.Join(caught, "; "))
					return
				}
			}
			t.Errorf("not caught in %d rounds of %v", attempts, duration)
		})
	}
}

// buildMutant compiles the harness with a copy of the library that has the mistake.
func buildMutant(t *testing.T, m mutant) (program string) {
	t.Helper()
	dir := t.TempDir()
	if err := copySource("..", dir); err != nil {
		t.Fatal(err)
	}
	for _, e := range m.edits {
		path := filepath.Join(dir, e.file)
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(source, []byte(e.old)); n != 1 {
			t.Fatalf("%s has %d times, not once:\n%s", e.file, n, e.old)
		}
		if err := os.WriteFile(path, bytes.Replace(source, []byte(e.old), []byte(e.new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program = filepath.Join(dir, "mutant")
	build := exec.CommandContext(t.Context(), "go", "build", "-mod=mod", "-o", program, ".")
	build.Dir = filepath.Join(dir, "chaos")
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// copySource copies what the harness is built from.
func copySource(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(filepath.ToSlash(below), "/")
		switch {
		case d.IsDir() && below != "." && !slices.Contains([]string{"internal", "embedtest", "chaos"}, first):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, below), 0o755)
		case !d.Type().IsRegular() || strings.HasSuffix(below, "_test.go"):
			return nil
		}
		if ext := filepath.Ext(below); ext != ".go" && ext != ".mod" && ext != ".sum" {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, below), content, 0o600)
	})
}

// runMutant makes one round and returns which promises were broken.
func runMutant(t *testing.T, program string, m mutant, seed uint64, d time.Duration) (caught []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d+2*time.Minute)
	defer cancel()
	args := append([]string{"-seed", fmt.Sprint(seed), "-duration", d.String(), "-dir", t.TempDir()}, m.storm...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it ends what it has started
	cmd.WaitDelay = recovery
	out, err := cmd.CombinedOutput()
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if _, what, found := strings.Cut(lines.Text(), "VIOLATED: "); found {
			caught = append(caught, what)
		}
	}
	if len(caught) > 0 && err == nil {
		t.Errorf("it has found something and ended with success:\n%s", out)
	}
	if len(caught) == 0 {
		t.Logf("seed %d:\n%s", seed, out)
	}
	return caught
}
