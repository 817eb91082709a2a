package etcdproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build returns the path of the etcd program of a version such as "v3.7.3". It is compiled once, from its
// modules, and kept in the user's cache directory. It reports what it does to w, which may be nil.
func Build(ctx context.Context, version string, w io.Writer) (program string, err error) {
	return build(ctx, "etcd", "go.etcd.io/etcd/server/v3", version, w)
}

// BuildCtl is Build for etcdctl.
func BuildCtl(ctx context.Context, version string, w io.Writer) (program string, err error) {
	return build(ctx, "etcdctl", "go.etcd.io/etcd/etcdctl/v3", version, w)
}

func build(ctx context.Context, name, module, version string, w io.Writer) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	dir := filepath.Join(cache, "locker")
	program := filepath.Join(dir, name+"-"+version)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if w == nil {
		w = io.Discard
	}
	fmt.Fprintf(w, "compiling %s %s, once: this takes a minute or more\n", name, version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := compile(ctx, dir, module, version, program); err != nil {
		return "", fmt.Errorf("build %s %s: %w", name, version, err)
	}
	fmt.Fprintf(w, "compiled %s\n", program)
	return program, nil
}

// compile builds in a directory of its own below dir and renames the result, so that of several
// processes that build at once each finds a whole program. It needs a module to build in, because
// "go install" refuses one that replaces others, as those of etcd do.
func compile(ctx context.Context, dir, module, version, program string) error {
	scratch, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	built := filepath.Join(scratch, "program")
	for _, args := range [][]string{
		{"mod", "init", "scratch"},
		{"get", module + "@" + version},
		{"build", "-o", built, module},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = scratch
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return os.Rename(built, program)
}
