package main

import (
	_ "github.com/jagregory/locker/v2"
	_ "github.com/jagregory/locker/v2/embedtest"
	_ "go.etcd.io/etcd/client/v3"
	_ "go.uber.org/goleak"
)

func main() {}
