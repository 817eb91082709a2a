package systest

import (
	"testing"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// The words of locktest, as the tests of this package say them.
const (
	patience  = locktest.Patience
	brief     = locktest.Brief
	steady    = locktest.Steady
	unhurried = locktest.Unhurried
	prompt    = locktest.Prompt
)

type (
	bundle       struct{ locktest.Bundle }
	outcome      = locktest.Outcome
	order        = locktest.Order
	simulation   = locktest.Simulation
	lateRequests = locktest.LateRequests
)

var (
	within     = locktest.Within
	connect    = locktest.Connect
	newClient  = locktest.NewClient
	lock       = locktest.Lock
	unlock     = locktest.Unlock
	newSession = locktest.NewSession
	lockAsync  = locktest.LockAsync
	eventually = locktest.Eventually
	want       = locktest.Want
	lost       = locktest.Lost
	renewed    = locktest.Renewed
	get        = locktest.Get
	list       = locktest.List
	newCache   = locktest.NewCache
	read       = locktest.Read
	holderBy   = locktest.HolderBy
	putKey     = locktest.PutKey
	simulate   = locktest.Simulate
	enqueues   = locktest.Enqueues
	releases   = locktest.Releases
	memberOf   = locktest.MemberOf

	errReplyLost = locktest.ErrReplyLost
)

func setup(t testing.TB, opts ...embedtest.Option) bundle {
	t.Helper()
	return bundle{locktest.Setup(t, opts...)}
}

func receive[T any](t testing.TB, ch <-chan T) T {
	t.Helper()
	return locktest.Receive(t, ch)
}

func TestMain(m *testing.M) { locktest.Main(m) }
