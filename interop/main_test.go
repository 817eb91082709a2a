package interop

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// builtVersions are the releases that are compiled once and kept: the newest patch of
// each minor version.
var builtVersions = []string{"v3.5.35", "v3.6.16", "v3.7.3"}

// oldestVersion cannot be compiled from modules, so it is tested only if it is installed.
// With LOCKER_TOOLS=required in the environment, it has to be.
const oldestVersion = "v3.4."

// release is a version of etcd with the paths of its programs.
type release struct{ version, etcd, etcdctl string }

var releases []release

func TestMain(m *testing.M) {
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if testing.Verbose() {
		fmt.Print(&table)
	}
	os.Exit(code)
}

func prepare() error {
	// The tests mostly wait, so many of them run at a time unless -parallel is given.
	if !flagGiven("test.parallel") {
		if err := flag.Set("test.parallel", "16"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	installed, err := findInstalled(ctx)
	if err != nil {
		return err
	}
	required := os.Getenv("LOCKER_TOOLS") == "required"
	switch {
	case strings.HasPrefix(installed.version, oldestVersion):
		releases = append(releases, installed)
	case required:
		return fmt.Errorf("etcd and etcdctl %s are required by LOCKER_TOOLS=required but not installed", oldestVersion)
	default:
		fmt.Fprintf(os.Stderr, "etcd %s is not installed and will not be tested\n", oldestVersion)
	}
	for _, version := range builtVersions {
		r := release{version: version}
		if r.etcd, err = etcdproc.Build(ctx, version, os.Stderr); err != nil {
			return err
		}
		if r.etcdctl, err = etcdproc.BuildCtl(ctx, version, os.Stderr); err != nil {
			return err
		}
		releases = append(releases, r)
	}
	for _, r := range releases {
		for _, s := range setups {
			share(r, s)
		}
	}
	return nil
}

func flagGiven(name string) (given bool) {
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	return given
}

// findInstalled returns the release that is installed on the system, or the zero release
// if a program is missing.
func findInstalled(ctx context.Context) (r release, err error) {
	if r.etcd, err = exec.LookPath("etcd"); err != nil {
		return release{}, nil
	}
	if r.etcdctl, err = exec.LookPath("etcdctl"); err != nil {
		return release{}, nil
	}
	out, err := exec.CommandContext(ctx, r.etcd, "--version").Output()
	if err != nil {
		return release{}, fmt.Errorf("etcd --version: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	r.version = "v" + strings.TrimPrefix(first, "etcd Version: ")
	return r, nil
}
