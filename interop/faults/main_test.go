//go:build unix

package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

const (
	version  = "v3.7.3"        // of etcd
	patience = time.Minute     // with what has no bound of its own
	building = 5 * time.Minute // etcd, the first time
	together = 3               // tests, each with a cluster of its own: they wait more than they work
)

// asClient is set in the environment of the test's program when it is to be a client process.
const asClient = "LOCKER_FAULTS_CLIENT"

func TestMain(m *testing.M) {
	if os.Getenv(asClient) != "" {
		if err := clientProcess(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", fmt.Sprint(together)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// connect opens a connection with nothing set that would find a frozen member: that is Locker's task.
func connect(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
}

// pause returns after d, or at the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
