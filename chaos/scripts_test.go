package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

func TestScript_LockerKeepsItsGuarantees(t *testing.T) {
	t.Parallel()
	for name, p := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			program, err := etcdproc.Build(ctx, etcdVersion, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			found, err := p.perform(ctx, t.Output(), program, t.TempDir())
			if err != nil || len(found) > 0 {
				t.Errorf("%v, %d violations", err, len(found))
			}
		})
	}
}

func TestFlags_AnUnknownScriptIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := parse([]string{"-script", "flood"}); err == nil || !strings.Contains(err.Error(), `"flood"`) {
		t.Errorf("got %v", err)
	}
}
