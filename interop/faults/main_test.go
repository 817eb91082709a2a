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
	version       = "v3.7.3"        // of etcd
	testTimeout   = time.Minute     // of waits that have no bound of their own
	buildTimeout  = 5 * time.Minute // of compiling etcd, the first time
	parallelTests = 3               // tests at a time, each with its own cluster: they mostly wait
)

// clientEnv is the environment variable that makes the test program a client process.
const clientEnv = "LOCKER_FAULTS_CLIENT"

func TestMain(m *testing.M) {
	if os.Getenv(clientEnv) != "" {
		if err := clientProcess(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", fmt.Sprint(parallelTests)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// connect opens a connection without any setting that would detect a frozen member: that
// is left to Locker.
func connect(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
}

// pause returns after d or at the end of ctx, whichever comes first.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
