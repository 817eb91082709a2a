package locker_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The documents name the tests of each promise, so a promise must not outlive its
// test: this fails if a test was renamed or removed.
func TestDocs_EveryTestTheyNameExists(t *testing.T) {
	t.Parallel()
	const least = 80 // of those named in docs/guarantees.md and docs/faults.md
	tests, documents := sources(t)
	declaration := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example|Benchmark)\w*)\(`)
	exists := make(map[string]bool)
	for _, path := range tests {
		for _, match := range declaration.FindAllStringSubmatch(contents(t, path), -1) {
			exists[match[1]] = true
		}
	}
	mention := regexp.MustCompile("`(Test[A-Z]\\w*|Fuzz[A-Z]\\w*)`")
	named := make(map[string]bool)
	for _, path := range documents {
		for _, match := range mention.FindAllStringSubmatch(contents(t, path), -1) {
			if named[match[1]] = true; !exists[match[1]] {
				t.Errorf("%s names %s, which does not exist", path, match[1])
			}
		}
	}
	if len(named) < least {
		t.Errorf("the documents name only %d tests", len(named))
	}
}

// sources returns the paths of all tests and of all documents.
func sources(t *testing.T) (tests, documents []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		switch {
		case strings.HasSuffix(path, "_test.go"):
			tests = append(tests, path)
		case strings.HasSuffix(path, ".md"):
			documents = append(documents, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, documents
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// deps returns what go list prints, in that format, for pkg and everything it links.
func deps(t *testing.T, format, pkg string) map[string]bool {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-deps", "-f", format, pkg)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	set := make(map[string]bool)
	for _, line := range strings.Fields(string(out)) {
		set[line] = true
	}
	return set
}

func TestDeps_AnImporterLinksNoModuleBeyondThoseOfEtcdsClient(t *testing.T) {
	t.Parallel()
	const modules = "{{with .Module}}{{.Path}}{{end}}"
	clients := deps(t, modules, "go.etcd.io/etcd/client/v3/concurrency")
	if len(clients) < 3 {
		t.Fatalf("etcd's client seems to need only %v", clients)
	}
	for module := range deps(t, modules, "github.com/jagregory/locker/v2") {
		if !clients[module] && module != "github.com/jagregory/locker/v2" {
			t.Errorf("the library links %s", module)
		}
	}
}

func TestDeps_AnImporterLinksNoServer(t *testing.T) {
	t.Parallel()
	linked := deps(t, "{{.ImportPath}}", "github.com/jagregory/locker/v2")
	if !linked["go.etcd.io/etcd/client/v3"] {
		t.Fatal("the list of packages lacks etcd's client")
	}
	for pkg := range linked {
		if strings.HasPrefix(pkg, "go.etcd.io/etcd/server/") || strings.HasSuffix(pkg, "/embedtest") {
			t.Errorf("the library links %s", pkg)
		}
	}
}

// TestImports_GoOneWay keeps the packages below internal apart: none of them imports the library, none of txn,
// watchmux and line imports another, and the library imports no others.
func TestImports_GoOneWay(t *testing.T) {
	t.Parallel()
	const module = "github.com/jagregory/locker/v2"
	basis := []string{"internal/tasks", "internal/backoff", "internal/key"}
	allowed := map[string][]string{
		"internal/txn":      basis,
		"internal/watchmux": basis,
		"internal/line":     basis,
		"internal/tasks":    nil,
		"internal/backoff":  nil,
		"internal/key":      nil,
		"":                  append([]string{"internal/txn", "internal/watchmux", "internal/line"}, basis...),
	}
	cmd := exec.Command("go", "list", "-f", "{{.ImportPath}}{{range .Imports}} {{.}}{{end}}", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		imports := strings.Fields(line)
		room := strings.TrimPrefix(strings.TrimPrefix(imports[0], module), "/")
		rooms, ok := allowed[room]
		if !ok {
			continue
		}
		seen++
		for _, path := range imports[1:] {
			if other, ours := strings.CutPrefix(path, module); ours && !slices.Contains(rooms, strings.TrimPrefix(other, "/")) {
				t.Errorf("%s imports %s", room, path)
			}
		}
	}
	if seen != len(allowed) {
		t.Errorf("go list reports %d of %d packages", seen, len(allowed))
	}
}
