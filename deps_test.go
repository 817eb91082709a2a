package locker_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// deps returns the modules, or the packages, that an importer of pkg links.
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

func TestAnImporterLinksNoModuleBeyondThoseOfEtcdsClient(t *testing.T) {
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

func TestAnImporterLinksNoServer(t *testing.T) {
	t.Parallel()
	linked := deps(t, "{{.ImportPath}}", "github.com/jagregory/locker/v2")
	if !linked["go.etcd.io/etcd/client/v3"] {
		t.Fatal("the list of packages is not what it should be")
	}
	for pkg := range linked {
		if strings.HasPrefix(pkg, "go.etcd.io/etcd/server/") || strings.HasSuffix(pkg, "/embedtest") {
			t.Errorf("the library links %s", pkg)
		}
	}
}
