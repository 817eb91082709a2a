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

var allMutants = flag.Bool("mutants", false, "test every mutant, not only those that are caught soonest")

// edit replaces a text that occurs exactly once in a file of the library.
type edit struct{ file, old, new string }

// mutant is a mistake that a library of locks could make.
type mutant struct {
	name     string
	edits    []edit
	storm    []string // flags: what shows it soonest
	soon     bool     // it is caught within seconds
	caughtBy []string // invariants: it breaks one of these at least
}

var mutants = []mutant{
	{
		name:  "the deadline is counted from the receipt of the answer",
		edits: []edit{{"keepalive.go", "	r.ttl = resp.TTL\n	r.odd", "	r.ttl, r.sent = resp.TTL, time.Now()\n	r.odd"}},
		storm: []string{"-faults", "late-answer", "-hold", "20s"},
		caughtBy: []string{
			"no two holds are certain at once", "a loss is told before etcd deletes",
			"a lock model explains the history (porcupine)",
		},
	},
	{
		name: "the clean-up runs on a context that has ended",
		edits: []edit{{
			"release.go", "		_ = l.cleanUp(l.client.lines.Call(l.name)) // it has done what can be done\n",
			"		ctx, cancel := context.WithCancel(l.session.cleanUpCtx)\n		cancel()\n		_, _ = l.dequeue(ctx, nil)\n		l.detach(nil)\n",
		}},
		storm:    []string{"-script", "given-up"},
		soon:     true,
		caughtBy: []string{goesWhenGivenUp},
	},
	{
		name:     "unlock goes by the key alone",
		edits:    []edit{{"release.go", "txn.Txn{Name: l.name, When: []*pb.Compare{l.standing()}, Then: []*pb.RequestOp{txn.OpDelete(l.key)}}", "txn.Txn{Name: l.name, Then: []*pb.RequestOp{txn.OpDelete(l.key)}}"}},
		storm:    []string{"-faults", "freeze-member-briefly", "-names", "4", "-hold", "200ms"},
		caughtBy: []string{"an entry is removed by its owner only", "no two holds are certain at once"},
	},
	{
		name:     "the own entry is not checked after waiting",
		edits:    []edit{{"acquire.go", "if string(ev.Kv.Key) == l.key {", "if false {"}},
		storm:    []string{"-faults", "delete-entry"},
		caughtBy: []string{"a hold that is reported was the head of its queue during the call"},
	},
	{
		name:     "the guard asks for existence instead of the create revision",
		edits:    []edit{{"lease.go", `clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.token.Load())`, `clientv3.Compare(clientv3.CreateRevision(l.key), ">", 0)`}},
		storm:    []string{"-faults", "delete-entry"},
		caughtBy: []string{"a guarded write happens under its hold"},
	},
	{
		name: "nothing is read again after a watch was closed while waiting",
		edits: []edit{
			{"acquire.go", "	for pause := (backoff.Pause{}); revision == 0 ||", "	closed := false\n	for pause := (backoff.Pause{}); revision == 0 ||"},
			{"acquire.go", "			if pause.Wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n		}\n		// First", "			if pause.Wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n			closed = true\n		}\n		// First"},
			{"acquire.go", "		if ahead, revision, err = l.look(ctx); err != nil {\n", "		if closed {\n			if unwatched != nil && pause.Wait(ctx) != nil {\n				return c.interrupted(ctx)\n			}\n			continue\n		}\n		if ahead, revision, err = l.look(ctx); err != nil {\n"},
		},
		storm:    []string{"-faults", "lose-events", "-rest", "3s", "-names", "2"},
		caughtBy: []string{"whose turn it is gets the lock"},
	},
	{
		name:     "nothing is read again after a watch of an observer was closed",
		edits:    []edit{{"watch.go", "			update(sent, resp.Header.Revision, p.load(resp, f.name))\n", "			if pause == (backoff.Pause{}) {\n				update(sent, resp.Header.Revision, p.load(resp, f.name))\n			}\n"}},
		storm:    []string{"-faults", "lose-events"},
		caughtBy: []string{"observers see what was so, in order, and the newest"},
	},
	{
		name: "observers go by revisions alone",
		edits: []edit{
			{"watch.go", "	\"bytes\"\n", ""},
			{"watch.go", "a.Lease == b.Lease && bytes.Equal(a.Value, b.Value)", "a.ModRevision == b.ModRevision"},
		},
		storm:    []string{"-script", "empty"},
		soon:     true,
		caughtBy: []string{showsWhatIsSo},
	},
	{
		name:     "the audit asks for existence instead of the create revision",
		edits:    []edit{{"record.go", "(len(kvs) == 0 || kvs[0].CreateRevision != l.token.Load())", "len(kvs) == 0"}},
		storm:    []string{"-script", "restore"},
		caughtBy: []string{forgottenIsLost},
	},
	{
		name:     "the audit leaves entries that belong to no lock",
		edits:    []edit{{"record.go", "	s.auditEntries(ctx)\n", ""}},
		storm:    []string{"-script", "restore"},
		caughtBy: []string{nothingBlocks},
	},
	{
		name:     "a session does not mind that etcd has gone back",
		edits:    []edit{{"record.go", "	if !s.timeline.follows(header, before) {\n", "	if false {\n"}},
		storm:    []string{"-script", "restore"},
		caughtBy: []string{endsWithThePast},
	},
	{
		name:     "a write that etcd's client has repeated is not in doubt",
		edits:    []edit{{"internal/txn/repeats.go", "return r.again.Load()", "return false"}},
		storm:    []string{"-faults", "repeat-writes"},
		caughtBy: []string{"a guarded write that is acknowledged was made once"},
	},
	{
		name:     "connections are not kept alive",
		edits:    []edit{{"options.go", "		DialKeepAliveTime:    keepAliveTime,\n", ""}},
		storm:    []string{"-script", "dead-connections"},
		caughtBy: []string{backFromTheDead},
	},
}

// duration is how long a storm lasts.
func (m mutant) duration() time.Duration {
	if m.soon {
		return 8 * time.Second
	}
	return 20 * time.Second
}

// catch is how a mutant was caught.
type catch struct {
	by    []string // invariants, of those it was to be caught by
	after time.Duration
}

// TestTheHarnessCatchesMutants applies each mistake to a copy of the source and lets the harness run over
// it until it finds what the mistake breaks. Over a copy without the mistake, the same storms from the
// same seeds must show nothing.
func TestTheHarnessCatchesMutants(t *testing.T) {
	t.Parallel()
	sound := build(t)
	var mu sync.Mutex // guards caught
	caught := make(map[string]catch)
	t.Cleanup(func() { t.Log(table(caught)) })
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
			t.Run("and not without the mistake", func(t *testing.T) {
				for seed := range seeds {
					m.spare(t, sound, seed+1)
				}
			})
		})
	}
}

// hunt lets the storm rage over the mutant until it is caught, and returns how many seeds that took.
func (m mutant) hunt(t *testing.T, program string) (c catch, seeds uint64) {
	t.Helper()
	const attempts = 4
	began := time.Now()
	for seed := uint64(1); seed <= attempts; seed++ {
		violated, out, err := m.storms(t, program, seed)
		if len(violated) > 0 && err == nil {
			t.Errorf("it has found something and ended with success:\n%s", out)
		}
		by := slices.DeleteFunc(slices.Clone(violated), func(name string) bool { return !slices.Contains(m.caughtBy, name) })
		if len(by) > 0 {
			c = catch{by, time.Since(began).Round(time.Second)}
			t.Logf("caught after %v, with seed %d, by: %s", c.after, seed, strings.Join(violated, "; "))
			return c, seed
		}
		t.Logf("seed %d: not caught by what it breaks (%q), but by %q:\n%s", seed, m.caughtBy, violated, out)
	}
	t.Errorf("not caught in %d rounds of %v", attempts, m.duration())
	return c, attempts
}

// spare lets the same storm rage over the library without the mistake.
func (m mutant) spare(t *testing.T, program string, seed uint64) {
	t.Helper()
	if violated, out, err := m.storms(t, program, seed); err != nil || len(violated) > 0 {
		t.Errorf("seed %d, without the mistake: %v, violated: %q\n%s", seed, err, violated, out)
	}
}

// storms makes one round and returns which promises were broken.
func (m mutant) storms(t *testing.T, program string, seed uint64) (violated []string, out []byte, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), m.duration()+2*time.Minute)
	defer cancel()
	args := append([]string{"-seed", fmt.Sprint(seed), "-duration", m.duration().String(), "-dir", t.TempDir()}, m.storm...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it ends what it has started
	cmd.WaitDelay = recovery
	out, err = cmd.CombinedOutput()
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if _, what, found := strings.Cut(lines.Text(), "VIOLATED: "); found {
			violated = append(violated, what[:strings.LastIndex(what, " (")]) // how many times does not matter
		}
	}
	return violated, out, err
}

// table tells in Markdown how the mutants were caught.
func table(caught map[string]catch) string {
	var text strings.Builder
	text.WriteString("\n| mutant | caught by | after |\n|---|---|---|\n")
	for _, m := range mutants {
		if c, tried := caught[m.name]; tried {
			fmt.Fprintf(&text, "| %s | %s | %v |\n", m.name, cmp.Or(strings.Join(c.by, "; "), "nothing"), c.after)
		}
	}
	return text.String()
}

// build compiles the harness with a copy of the library, and with mistakes in it.
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
			t.Fatalf("%s has %d times, not once:\n%s", e.file, n, e.old)
		}
		if err := os.WriteFile(path, bytes.Replace(source, []byte(e.old), []byte(e.new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program = filepath.Join(dir, "harness")
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
