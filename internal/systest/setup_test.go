package systest

import (
	"context"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// lockCalls are the calls that lock a name.
var lockCalls = map[string]func(*locker.Client, context.Context, string, string, ...locker.LockOption) (*locker.Lock, error){
	"Lock": (*locker.Client).Lock, "TryLock": (*locker.Client).TryLock,
}

func TestMain(m *testing.M) { locktest.Main(m) }
