package main

import (
	"strings"
	"testing"

	"github.com/jagregory/locker/v2"
)

// What an installed program prints is tested in interop/release.
func TestVersion_OfAProgramWithoutOneIsTheLibrarys(t *testing.T) {
	t.Parallel()
	if got := callWith(t, nil, "version").want(t, 0); !strings.HasPrefix(got.stdout, "locker v"+locker.Version+" (devel), go") {
		t.Errorf("it prints %q", got.stdout)
	}
}
