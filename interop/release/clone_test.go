package release_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A file that the go command completes in a fresh clone, go.work.sum first of all, makes the first commit of a
// contributor a wrong one. Building a program changes no more than listing what it is built from.
func TestClone_IsNotModifiedByTheGoCommand(t *testing.T) {
	t.Parallel()
	r := &release{dir: filepath.Join(t.TempDir(), "clone"), env: os.Environ()}
	r.run(t, ".", "git", "clone", "--quiet", publish(t).dir, r.dir)
	readme, err := os.ReadFile(filepath.Join(r.dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	programs := []string{}
	for _, match := range regexp.MustCompile(`\bgo run (\./\S+)`).FindAllStringSubmatch(string(readme), -1) {
		programs = append(programs, strings.Trim(match[1], "`)"))
	}
	if len(programs) < 3 {
		t.Fatalf("README.md runs no more than %q", programs)
	}
	r.unmodified(t, "doc", "-all", ".")
	r.unmodified(t, "list", "-m", "all")
	r.unmodified(t, "list", "-deps", "-test", "./...")
	for _, program := range programs {
		r.unmodified(t, "list", "-deps", program)
	}
}

// unmodified runs the go command and checks that the clone is still as it was.
func (r *release) unmodified(t *testing.T, args ...string) {
	t.Helper()
	r.run(t, r.dir, "go", args...)
	if status := r.run(t, r.dir, "git", "status", "--porcelain"); status != "" {
		t.Errorf("go %s has modified the clone:\n%s", strings.Join(args, " "), status)
	}
}
