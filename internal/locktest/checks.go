package locktest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/key"
)

// WantLost fails the test unless err says that l was lost for the reason.
func WantLost(t testing.TB, err error, l *locker.Lock, reason locker.Reason) {
	t.Helper()
	var lost *locker.LostError
	if !errors.Is(err, locker.ErrLost) || !errors.As(err, &lost) {
		t.Errorf("not a LostError: %v", err)
	} else if lost.Name != l.Name() || lost.Token != l.Token() || lost.Reason != reason {
		t.Errorf("%+v, want %s, token %d, %v", lost, l.Name(), l.Token(), reason)
	}
}

// Lost waits until l is no longer held, and fails the test unless it was lost for that reason.
func Lost(t testing.TB, l *locker.Lock, reason locker.Reason) *locker.LostError {
	t.Helper()
	Receive(t, l.Context().Done())
	var loss *locker.LostError
	if err := l.Err(); !errors.As(err, &loss) || !errors.Is(err, locker.ErrLost) {
		t.Fatalf("the hold ended with %v", err)
	}
	if loss.Reason != reason || loss.Name != l.Name() || loss.Token != l.Token() {
		t.Errorf("lost with %+v, want %v", loss, reason)
	}
	return loss
}

// Renewed waits for a renewal that begins after now.
func Renewed(t testing.TB, l *locker.Lock) {
	t.Helper()
	// The renewal that moves the deadline first may have been under way; the
	// second was not.
	for range 2 {
		before := l.Deadline()
		Eventually(t, "the deadline moves", func() bool { return l.Err() != nil || l.Deadline().After(before) })
	}
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
}

// HolderBy returns what others should see of l, without a request.
func HolderBy(l *locker.Lock) locker.Holder {
	return locker.Holder{Name: l.Name(), Value: l.Value(), Token: l.Token(), Lease: LeaseOf(l), Limit: limitOf(l)}
}

// limitOf returns what the key of l says of its kind.
func limitOf(l *locker.Lock) int { return int(key.NewSpace(locker.DefaultPrefix).KindOf(l.Key())) }

// LeaseOf returns the lease that the entry of l is attached to, as its key says.
func LeaseOf(l *locker.Lock) (id clientv3.LeaseID) {
	_, _ = fmt.Sscanf(MemberOf(l), "%x", &id)
	return id
}

// MemberOf returns what the session of a lock calls its entries.
func MemberOf(l *locker.Lock) string { return l.Key()[strings.LastIndex(l.Key(), "/")+1:] }
