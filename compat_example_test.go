package locker_test

import (
	"fmt"
	"log"

	"github.com/jagregory/locker/v2"
)

// The programs of the original's README. What comes before NewCompat is the
// etcd client that is created elsewhere and passed in.

func ExampleNewCompat() {
	etcd, stop := startEtcd()
	defer stop()

	// Create the locker client.
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned := make(chan bool)
	go client.Lock("key", "value", owned, nil)
	<-owned

	fmt.Println(client.Get("key"))
	// Output: value <nil>
}

func ExampleClient_Compat() {
	etcd, stop := startEtcd()
	defer stop()
	client, err := locker.New(etcd, locker.WithPrefix("shop/locks/"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	old := client.Compat() // for the parts of a program that are yet to be changed
	defer old.Close()

	_, err = old.Get("key")
	_, notFound := err.(locker.LockNotFound)
	fmt.Println(err, notFound)
	// Output: Lock not found: key true
}

// Listening for state changes.
func ExampleCompat_Lock() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned := make(chan bool)
	go client.Lock("key", "value", owned, nil)

	change := <-owned
	fmt.Printf("Do we own the lock? %t", change)
	// Output: Do we own the lock? true
}

// Releasing the lock.
func ExampleCompat_Lock_quit() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	owned, quit, done := make(chan bool), make(chan bool), make(chan error)
	go func() { done <- client.Lock("key", "value", owned, quit) }()
	fmt.Println("Do we own the lock?", <-owned)

	quit <- true
	fmt.Println("Lock returned:", <-done)

	_, err := client.Get("key")
	fmt.Println(err)
	// Output:
	// Do we own the lock? true
	// Lock returned: <nil>
	// Lock not found: key
}

// Watching a lock.
func ExampleCompat_Watch() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	valueChanges, owned := make(chan string), make(chan bool)
	go client.Watch("key", valueChanges, nil)
	fmt.Printf("Lock value: %q\n", <-valueChanges)

	go client.Lock("key", "value", owned, nil)

	change := <-valueChanges
	fmt.Printf("Lock value changed: %q\n", change)
	// Output:
	// Lock value: ""
	// Lock value changed: "value"
}

// A name server: the hosts lock their names, with their addresses.
func ExampleCompat_nameServer() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()
	redirectRequestsToNewIp := func(ip string) { fmt.Println("requests go to", ip) }

	owned, quit := make(chan bool), make(chan bool)
	go client.Lock("www.example.com", "10.1.1.1", owned, quit)
	<-owned

	ip, err := client.Get("www.example.com")
	fmt.Println("resolved:", ip, err)

	valueChanges := make(chan string)
	go client.Watch("www.example.com", valueChanges, nil)
	redirectRequestsToNewIp(<-valueChanges)

	// Another host stands by for the name, and the first one goes.
	standby := make(chan bool)
	go client.Lock("www.example.com", "10.1.1.2", standby, nil)
	<-standby
	quit <- true

	for newIp := range valueChanges {
		if newIp != "" { // between the two nobody has it
			redirectRequestsToNewIp(newIp)
			break
		}
	}
	// Output:
	// resolved: 10.1.1.1 <nil>
	// requests go to 10.1.1.1
	// requests go to 10.1.1.2
}

// Health monitoring: each service locks a record of its own while it is healthy,
// and kills its lock when it is not, or when one that it depends on is not.
func ExampleCompat_healthMesh() {
	etcd, stop := startEtcd()
	defer stop()
	client := locker.NewCompat(etcd)
	defer client.Close()

	ownedA, quitA, doneA := make(chan bool), make(chan bool), make(chan error)
	ownedB, quitB := make(chan bool), make(chan bool)

	// in service-a
	go func() { doneA <- client.Lock("service-a", "ok", ownedA, quitA) }()
	// in service-b
	go client.Lock("service-b", "ok", ownedB, quitB)
	<-ownedA
	<-ownedB

	// in service-a
	changes := make(chan string)
	go client.Watch("service-b", changes, nil)
	fmt.Println("service-b is", <-changes)

	// in service-b
	quitB <- true

	// in service-a
	if change := <-changes; change == "" {
		fmt.Println("service-b is gone, and service-a goes too")
		quitA <- true
		<-doneA
	}
	_, err := client.Get("service-a")
	fmt.Println(err)
	// Output:
	// service-b is ok
	// service-b is gone, and service-a goes too
	// Lock not found: service-a
}
