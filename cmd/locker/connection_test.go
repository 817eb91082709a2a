package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/internal/locktest"
)

// Below "locker run", LOCKER_KEY is the key of the lock, and not the file with a key of TLS.
func TestConnection_TheEnvironmentOfRunIsNotTakenForItsOwn(t *testing.T) {
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "a", "value")
	t.Setenv("LOCKER_ENDPOINTS", strings.Join(b.Server.Endpoints(), ","))
	t.Setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1") // LOCKER_ENDPOINTS comes first
	t.Setenv("LOCKER_KEY", "locker/a/1")
	t.Setenv("LOCKER_TOKEN", "1")
	var out, errs bytes.Buffer
	if code := execute([]string{"get", "a"}, strings.NewReader(""), &out, &errs); code != 0 || strings.TrimSpace(out.String()) != "value" {
		t.Errorf("code %d, %q, %q", code, out.String(), errs.String())
	}
	t.Setenv("LOCKER_TOKEN", "")
	if code := execute([]string{"get", "a"}, strings.NewReader(""), &out, &errs); code != exitUsage {
		t.Errorf("with a key and no certificate: code %d, %q", code, errs.String())
	}
}
