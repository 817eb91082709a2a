package gocronlocker_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/go-co-op/gocron/v2"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/contrib/gocron"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// startClient starts an etcd in this process and a client of it; a program would call clientv3.New
// with the endpoints of its cluster.
func startClient() (client *locker.Client, stop func()) {
	server, err := embedtest.New()
	if err != nil {
		log.Fatal(err)
	}
	etcd, err := clientv3.New(server.ClientConfig())
	if err != nil {
		log.Fatal(err)
	}
	client, err = locker.New(etcd)
	if err != nil {
		log.Fatal(err)
	}
	return client, func() { client.Close(); etcd.Close(); server.Close() }
}

func ExampleNewLocker() {
	client, stop := startClient()
	defer stop()

	jobs, err := gocronlocker.NewLocker(client, gocronlocker.WithSplay(30*time.Second)) // half a minute between two ticks
	if err != nil {
		log.Fatal(err)
	}
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedLocker(jobs))
	if err != nil {
		log.Fatal(err)
	}
	defer scheduler.Shutdown()

	ran := make(chan string)
	report := func() { ran <- "the report is written" }
	_, err = scheduler.NewJob(gocron.CronJob("* * * * *", false), gocron.NewTask(report), gocron.WithName("report"),
		gocron.WithStartAt(gocron.WithStartImmediately())) // the example does not wait for the minute
	if err != nil {
		log.Fatal(err)
	}
	scheduler.Start()
	fmt.Println(<-ran)
	// Output: the report is written
}

func ExampleLocker_Task() {
	client, stop := startClient()
	defer stop()
	jobs, err := gocronlocker.NewLocker(client)
	if err != nil {
		log.Fatal(err)
	}
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedLocker(jobs))
	if err != nil {
		log.Fatal(err)
	}
	defer scheduler.Shutdown()

	ran := make(chan string)
	// ctx ends when the lock is lost.
	report := jobs.Task(func(ctx context.Context, lock *locker.Lock) error {
		_, err := lock.Commit(ctx, clientv3.OpPut("report", "written")) // under the lock, or not at all
		ran <- lock.Name()
		return err
	})
	_, err = scheduler.NewJob(gocron.DurationJob(time.Hour), gocron.NewTask(report), gocron.WithName("report"),
		gocron.WithStartAt(gocron.WithStartImmediately()))
	if err != nil {
		log.Fatal(err)
	}
	scheduler.Start()
	fmt.Println(<-ran)
	// Output: gocron/report
}

func ExampleNewElector() {
	client, stop := startClient()
	defer stop()

	elector, err := gocronlocker.NewElector(client, "scheduler", "host 1")
	if err != nil {
		log.Fatal(err)
	}
	defer elector.Stop(context.Background())
	scheduler, err := gocron.NewScheduler(gocron.WithDistributedElector(elector))
	if err != nil {
		log.Fatal(err)
	}
	defer scheduler.Shutdown()

	ran := make(chan string)
	_, err = scheduler.NewJob(gocron.DurationJob(100*time.Millisecond), gocron.NewTask(func(ctx context.Context) {
		select {
		case ran <- "this instance leads":
		case <-ctx.Done():
		}
	}))
	if err != nil {
		log.Fatal(err)
	}
	scheduler.Start()
	fmt.Println(<-ran)
	// Output: this instance leads
}
