package release_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestInstall_TheCommandPrintsTheVersionOfItsTag(t *testing.T) {
	t.Parallel()
	r := publish(t)
	r.run(t, t.TempDir(), "go", "install", root+"/cmd/locker@"+rootVersion)
	got := r.run(t, r.dir, filepath.Join(r.bin, "locker"), "version")
	if want := "locker " + rootVersion + ", " + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH; got != want {
		t.Errorf("it prints %q, not %q", got, want)
	}
}

// The program is testdata/program: main.go, and for each module below contrib a file of its name.
func TestInstall_AProgramRunsThatUsesEveryModule(t *testing.T) {
	t.Parallel()
	r := publish(t)
	dir := t.TempDir()
	r.run(t, dir, "go", "mod", "init", "example.com/program")
	for _, m := range r.modules {
		file, version := "main.go", rootVersion
		if m.Dir != "." {
			file, version = filepath.Base(m.Dir)+".go", contribVersion
		}
		copyFile(t, filepath.Join("testdata", "program", file), filepath.Join(dir, file))
		r.run(t, dir, "go", "mod", "edit", "-require="+m.Module.Path+"@"+version)
	}
	r.run(t, dir, "go", "mod", "tidy")
	r.run(t, dir, "go", "build", "-o", "program.exe", ".")
	endpoint := embedtest.Start(t).Endpoints()[0]
	got := r.run(t, dir, filepath.Join(dir, "program.exe"), endpoint)
	want := []string{"locker"}
	for _, m := range r.modules[1:] {
		want = append(want, filepath.Base(m.Dir))
	}
	if got := strings.Fields(got); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("it has used %q, not %q", got, want)
	}
	t.Logf("used: %s", got)
}

func TestChangelog_HasASectionOfTheVersion(t *testing.T) {
	t.Parallel()
	r := publish(t)
	if notes := r.run(t, r.dir, "bash", ".ci/notes", rootVersion); notes == "" {
		t.Error("the section is empty")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Only the last element of a path is a major version, so what lies below contrib is no part of v2.
func TestModules_FitTheirDirectoriesAndReplaceNothing(t *testing.T) {
	t.Parallel()
	for _, m := range publish(t).modules {
		want := root
		if m.Dir != "." {
			want = repository + "/" + filepath.ToSlash(m.Dir)
		}
		if m.Module.Path != want {
			t.Errorf("the module in %s is %s, not %s", m.Dir, m.Module.Path, want)
		}
		for _, replaced := range m.Replace {
			t.Errorf("%s replaces %s, which those who require it do not", m.Module.Path, replaced.Old.Path)
		}
		requires := m.Dir == "."
		for _, required := range m.Require {
			requires = requires || required.Path == root && required.Version == rootVersion
		}
		if !requires {
			t.Errorf("%s does not require %s %s", m.Module.Path, root, rootVersion)
		}
	}
}

// The sums of Locker itself are known only after it has been tagged.
func TestModules_AreTidyButForTheSumsOfLocker(t *testing.T) {
	t.Parallel()
	r := publish(t)
	for _, m := range r.modules {
		dir := filepath.Join(t.TempDir(), "module")
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(r.dir, m.Dir))); err != nil {
			t.Fatal(err)
		}
		before := withoutLocker(t, dir, true)
		r.run(t, dir, "go", "mod", "tidy")
		if after := withoutLocker(t, dir, false); after != before {
			t.Errorf("%s is not tidy; go.mod and go.sum are\n%s\nand should be\n%s", m.Module.Path, before, after)
		}
	}
}

// withoutLocker returns go.mod, and go.sum without the lines of Locker. If asked to, it removes them:
// those of an earlier commit with the same version would be refused.
func withoutLocker(t *testing.T, dir string, remove bool) string {
	t.Helper()
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	sums, err := os.ReadFile(filepath.Join(dir, "go.sum"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var others strings.Builder
	for line := range strings.Lines(string(sums)) {
		if !strings.HasPrefix(line, repository+"/") {
			others.WriteString(line)
		}
	}
	if remove {
		if err := os.WriteFile(filepath.Join(dir, "go.sum"), []byte(others.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return string(mod) + others.String()
}
