package release_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

const (
	timeout        = 10 * time.Minute // of one command, which may have to compile etcd
	repository     = "github.com/jagregory/locker"
	root           = repository + "/v2"
	rootVersion    = "v" + locker.Version
	contribVersion = "v0.1.0" // any will do
)

// A module is one that is installed or required by users.
type module struct {
	Dir     string `json:"-"` // below the root of the repository
	Module  struct{ Path string }
	Require []struct{ Path, Version string }
	Replace []struct{ Old struct{ Path string } }
}

// A release is a clone of the repository with the tags of the next release.
type release struct {
	dir     string   // of the clone
	bin     string   // where go install puts commands
	env     []string // in which the tags are found where users find them
	modules []module // the root first
}

// publish returns the release, which all tests share.
func publish(t *testing.T) *release {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil && os.Getenv("LOCKER_TOOLS") != "required" {
		t.Skip("git is not installed")
	}
	r, err := published()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var published = sync.OnceValues(func() (*release, error) {
	r := &release{dir: filepath.Join(scratch, "clone"), bin: filepath.Join(scratch, "bin"), env: os.Environ()}
	here, err := r.output(".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return nil, err
	}
	if _, err := r.output(".", "git", "clone", "--quiet", "--no-tags", "--config=core.autocrlf=false", here, r.dir); err != nil {
		return nil, err
	}
	if err := r.tag(); err != nil {
		return nil, err
	}
	return r, r.setenv()
})

// tag finds the modules and tags them.
func (r *release) tag() error {
	dirs, err := filepath.Glob(filepath.Join(r.dir, "contrib", "*", "go.mod"))
	if err != nil {
		return err
	}
	for _, file := range append([]string{filepath.Join(r.dir, "go.mod")}, dirs...) {
		var m module
		text, err := r.output(r.dir, "go", "mod", "edit", "-json", file)
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			return err
		}
		if m.Dir, err = filepath.Rel(r.dir, filepath.Dir(file)); err != nil {
			return err
		}
		tag := rootVersion
		if m.Dir != "." {
			tag = filepath.ToSlash(m.Dir) + "/" + contribVersion
		}
		if _, err := r.output(r.dir, "git", "update-ref", "refs/tags/"+tag, "HEAD"); err != nil {
			return err
		}
		r.modules = append(r.modules, m)
	}
	return nil
}

// setenv makes the environment of a user, for whom Locker is in the clone, and other modules are in this
// machine's module cache, or where it gets them from. The cache has been filled by builds that check go.sum,
// so that the checksum database is not asked, which needs the network.
func (r *release) setenv() error {
	out, err := r.output(".", "go", "env", "GOMODCACHE", "GOPROXY")
	if err != nil {
		return err
	}
	cache, proxy, _ := strings.Cut(out, "\n")
	slashed := func(path string) string { return "/" + strings.TrimPrefix(filepath.ToSlash(path), "/") }
	r.env = append(r.env,
		"GOWORK=off",
		"GOFLAGS=-modcacherw -trimpath", // trimmed, packages compile once, wherever the module cache is
		"GOMODCACHE="+filepath.Join(scratch, "modules"),
		"GOBIN="+r.bin,
		"GOPROXY=file://"+slashed(cache)+"/cache/download,"+proxy,
		"GOSUMDB=off", "GOPRIVATE="+repository, "GONOPROXY="+repository,
		"GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=url.file://"+slashed(r.dir)+".insteadOf",
		"GIT_CONFIG_VALUE_0=https://"+repository)
	return nil
}

// run runs a command in the environment of a user, and returns what it prints to its standard output.
func (r *release) run(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	began := time.Now()
	out, err := r.output(dir, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: %.1f s", filepath.Base(name), strings.Join(args, " "), time.Since(began).Seconds())
	return out
}

func (r *release) output(dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, r.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err = errors.Join(err, ctx.Err()); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSpace(string(out)), nil
}
