package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var allMutants = flag.Bool("mutants", false, "test all mutants, not only the one that is caught at once")

// edit replaces a text that occurs exactly once in a source file.
type edit struct{ file, old, new string }

// mutant is a mistake that a lock library could make.
type mutant struct {
	name     string
	edits    []edit
	flags    []string // of the harness, chosen to catch the mistake soon
	soon     bool     // caught at once, so make test tests it
	caughtBy []string // invariants, at least one of which it must violate
}

var mutants = []mutant{
	{
		name:  "the deadline counts from the receipt of the answer",
		edits: []edit{{"keepalive.go", "	r.ttl = resp.TTL\n	r.odd", "	r.ttl, r.sent = resp.TTL, time.Now()\n	r.odd"}},
		flags: []string{"-faults", "late-answer", "-hold", "20s"},
		caughtBy: []string{
			"no two holds are certain at once", "a loss is reported before etcd deletes the entry",
			"a lock model explains the history (porcupine)",
		},
	},
	{
		name: "a call that fails removes nothing from the queue",
		edits: []edit{{
			"release.go", "		_ = l.cleanUp(l.client.lines.Call(l), nil) // it has done what can be done\n",
			"		l.detach()\n",
		}},
		flags:    []string{"-script", "given-up"},
		soon:     true,
		caughtBy: []string{leavesNoEntry},
	},
	{
		name:     "unlock deletes by the key alone",
		edits:    []edit{{"queue.go", "	if len(l.entries) > 1 {\n		for i, op", "	if len(l.entries) == 1 {\n		t.When = nil\n	}\n	if len(l.entries) > 1 {\n		for i, op"}},
		flags:    []string{"-faults", "freeze-member-briefly", "-names", "4", "-hold", "200ms"},
		caughtBy: []string{"an entry is removed only by its owner", "no two holds are certain at once"},
	},
	{
		name:     "a waiter does not check its own entry",
		edits:    []edit{{"wait.go", "if string(ev.Kv.Key) == v.key {", "if false {"}},
		flags:    []string{"-faults", "delete-entry"},
		caughtBy: []string{"every reported hold was the head of its queue during the call"},
	},
	{
		name:     "the guard checks existence instead of the create revision",
		edits:    []edit{{"lease.go", `clientv3.Compare(clientv3.CreateRevision(k), "=", l.token.Load())`, `clientv3.Compare(clientv3.CreateRevision(k), ">", 0)`}},
		flags:    []string{"-faults", "delete-entry"},
		caughtBy: []string{"a guarded write is applied during its hold"},
	},
	{
		name: "a waiter does not read again after its watch was closed",
		edits: []edit{
			{"wait.go", "type view struct {\n", "type view struct {\n	closed bool\n"},
			{"wait.go", "			return ended, nil\n", "			v.closed = true\n			return ended, nil\n"},
			{"wait.go", "since == v.revision {", "v.closed || since == v.revision {"},
		},
		flags:    []string{"-faults", "lose-events", "-rest", "3s", "-names", "2"},
		caughtBy: []string{"the head of the queue gets the lock in time"},
	},
	{
		name:     "an observer does not read again after its watch was closed",
		edits:    []edit{{"watch.go", "			changed := q.load(resp, f.name)\n			update(sent, resp.Header.Revision, q, changed)\n", "			if pause == (backoff.Pause{}) {\n				changed := q.load(resp, f.name)\n				update(sent, resp.Header.Revision, q, changed)\n			}\n"}},
		flags:    []string{"-faults", "lose-events"},
		caughtBy: []string{"observers see only true states, in order, and the newest in time"},
	},
	{
		name:     "observers compare revisions alone",
		edits:    []edit{{"watch.go", "a.Lease == b.Lease && bytes.Equal(a.Value, b.Value) && bytes.Equal(a.Key, b.Key)", "a.ModRevision == b.ModRevision"}},
		flags:    []string{"-script", "empty"},
		caughtBy: []string{showsCurrent},
	},
	{
		name:     "the audit checks existence instead of the create revision",
		edits:    []edit{{"record.go", "(len(kvs) == 0 || kvs[0].CreateRevision != b.token.Load())", "len(kvs) == 0"}},
		flags:    []string{"-script", "restore"},
		caughtBy: []string{missingIsLost},
	},
	{
		name:     "the audit keeps entries that belong to no lock",
		edits:    []edit{{"record.go", "	s.auditEntries(ctx)\n", ""}},
		flags:    []string{"-script", "restore"},
		caughtBy: []string{noStaleEntry},
	},
	{
		name:     "a session ignores that etcd went back in time",
		edits:    []edit{{"record.go", "	if !s.timeline.follows(header, before) {\n", "	if false {\n"}},
		flags:    []string{"-script", "restore"},
		caughtBy: []string{endsWhenBehind},
	},
	{
		name:     "a write that etcd's client repeated is not in doubt",
		edits:    []edit{{"internal/txn/repeats.go", "return r.again.Load()", "return false"}},
		flags:    []string{"-faults", "repeat-writes"},
		caughtBy: []string{"an acknowledged guarded write was applied once"},
	},
	{
		name:     "a shared lock does not compare its own key when it puts its entry",
		edits:    []edit{{"queue.go", "	return append(compares, txn.CmpCreate(k, 0))\n", "	return compares\n"}},
		flags:    []string{"-script", "repeated-put"},
		caughtBy: []string{wasHead},
	},
	{
		name: "a shared waiter does not check its own entry when it looks",
		edits: []edit{{
			"wait.go", "	ahead, ok := v.predecessors(v.key, resp.Responses, token)\n",
			"	ahead, ok := v.predecessors(v.key, resp.Responses, token)\n	if !ok && v.entry.kind() == key.Shared {\n		ahead, _ = newestFirst(resp.Responses)\n		ok = true\n	}\n",
		}},
		flags:    []string{"-faults", "delete-entry"},
		caughtBy: []string{"every reported hold was the head of its queue during the call"},
	},
	{
		name:     "a watch that was kept is used whatever was read from it",
		edits:    []edit{{"internal/watchmux/watchmux.go", "if kept == nil || kept.Watch != nil && kept.Reached > revision {", "if kept == nil {"}},
		flags:    []string{"-script", "kept-watch"},
		caughtBy: []string{servedInTime},
	},
	{
		name:     "only the own limit counts",
		edits:    []edit{{"rule.go", "	return c.size < int(min(kind, c.limit))\n", "	return c.size < int(kind)\n"}},
		flags:    []string{"-faults", "stop-briefly"},
		caughtBy: []string{"every reported hold was the head of its queue during the call", "no two holds are certain at once"},
	},
	{
		name:     "shared and other holds mix",
		edits:    []edit{{"rule.go", "		return kind == c.limit\n", "		return true\n"}},
		flags:    []string{"-faults", "stop-briefly"},
		caughtBy: []string{"every reported hold was the head of its queue during the call", "no two holds are certain at once"},
	},
	{
		name:     "a limited TryLock does not check that nobody has joined since its read",
		edits:    []edit{{"queue.go", "		return append(compares, txn.CmpNoneSince(all.From, all.To, read))\n", "		if read == 0 {\n			return append(compares, txn.CmpNoneSince(all.From, all.To, read))\n		}\n		return compares\n"}},
		flags:    []string{"-script", "joined-meanwhile"},
		caughtBy: []string{wasHead},
	},
	{
		name:     "connections have no keepalive",
		edits:    []edit{{"options.go", "		DialKeepAliveTime:    keepAliveTime,\n", ""}},
		flags:    []string{"-script", "dead-connections"},
		caughtBy: []string{recovers},
	},
}

// duration is the time under faults of one round.
func (m mutant) duration() time.Duration {
	if m.soon {
		return 8 * time.Second
	}
	return 20 * time.Second
}

// catch records how a mutant was caught.
type catch struct {
	by    []string // those of caughtBy that were violated
	after time.Duration
}

// TestMutants_AreCaught applies each mistake to a copy of the source and runs the harness
// on it until it reports what the mistake violates. On an unchanged copy, the same flags
// and seeds must report nothing.
func TestMutants_AreCaught(t *testing.T) {
	t.Parallel()
	unchanged := build(t)
	var mu sync.Mutex // guards caught
	caught := make(map[string]catch)
	t.Cleanup(func() { t.Log(markdown(caught)) })
	for _, m := range mutants {
		if !m.soon && !*allMutants {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for _, name := range m.caughtBy {
				if !isInvariant(name) {
					t.Fatalf("there is no invariant %q", name)
				}
			}
			c, seeds := m.hunt(t, build(t, m.edits...))
			mu.Lock()
			caught[m.name] = c
			mu.Unlock()
			t.Run("but not without the mistake", func(t *testing.T) {
				for seed := range seeds {
					m.checkUnchanged(t, unchanged, seed+1)
				}
			})
		})
	}
}

// hunt runs rounds on the mutant until it is caught, and returns how many that took.
func (m mutant) hunt(t *testing.T, program string) (c catch, seeds uint64) {
	t.Helper()
	const attempts = 4
	began := time.Now()
	for seed := uint64(1); seed <= attempts; seed++ {
		violated, out, err := m.round(t, program, seed)
		if len(violated) > 0 && err == nil {
			t.Errorf("the harness found violations but exited with success:\n%s", out)
		}
		by := slices.DeleteFunc(slices.Clone(violated), func(name string) bool { return !slices.Contains(m.caughtBy, name) })
		if len(by) > 0 {
			c = catch{by, time.Since(began).Round(time.Second)}
			t.Logf("caught after %v, with seed %d, by: %s", c.after, seed, strings.Join(violated, "; "))
			return c, seed
		}
		t.Logf("seed %d: violated: %q, want one of %q:\n%s", seed, violated, m.caughtBy, out)
	}
	t.Errorf("not caught in %d rounds of %v", attempts, m.duration())
	return c, attempts
}

// checkUnchanged runs the same round on the library without the mistake.
func (m mutant) checkUnchanged(t *testing.T, program string, seed uint64) {
	t.Helper()
	if violated, out, err := m.round(t, program, seed); err != nil || len(violated) > 0 {
		t.Errorf("seed %d, without the mistake: %v, violated: %q\n%s", seed, err, violated, out)
	}
}

// round runs one round and returns the violated invariants.
func (m mutant) round(t *testing.T, program string, seed uint64) (violated []string, out []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), m.duration()+2*time.Minute)
	defer cancel()
	args := append([]string{"-seed", fmt.Sprint(seed), "-duration", m.duration().String(), "-dir", t.TempDir()}, m.flags...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it stops what it started
	cmd.WaitDelay = recovery
	out, err = cmd.CombinedOutput()
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if _, what, found := strings.Cut(lines.Text(), "VIOLATED: "); found {
			violated = append(violated, what[:strings.LastIndex(what, " (")]) // without the count
		}
	}
	return violated, out, err
}

// markdown returns a Markdown table of how the mutants were caught.
func markdown(caught map[string]catch) string {
	var text strings.Builder
	text.WriteString("\n| mutant | caught by | after |\n|---|---|---|\n")
	for _, m := range mutants {
		if c, tried := caught[m.name]; tried {
			fmt.Fprintf(&text, "| %s | %s | %v |\n", m.name, cmp.Or(strings.Join(c.by, "; "), "nothing"), c.after)
		}
	}
	return text.String()
}

// build compiles the harness from a copy of the source with the given edits.
func build(t *testing.T, edits ...edit) (program string) {
	t.Helper()
	dir := t.TempDir()
	if err := copySource("..", dir); err != nil {
		t.Fatal(err)
	}
	for _, e := range edits {
		path := filepath.Join(dir, e.file)
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(source, []byte(e.old)); n != 1 {
			t.Fatalf("%s contains this %d times, want once:\n%s", e.file, n, e.old)
		}
		if err := os.WriteFile(path, bytes.Replace(source, []byte(e.old), []byte(e.new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program = filepath.Join(dir, "harness")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-mod=mod", "-ldflags=-s -w", "-o", program, ".")
	cmd.Dir = filepath.Join(dir, "chaos")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// copySource copies the source from which the harness is built.
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
