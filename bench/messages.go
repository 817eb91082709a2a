package main

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
)

// messageCounter counts the messages that connections send to etcd, by method.
type messageCounter struct {
	mu   sync.Mutex // guards sent
	sent map[string]int
}

func newMessageCounter() *messageCounter { return &messageCounter{sent: make(map[string]int)} }

func (c *messageCounter) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

func (c *messageCounter) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c.count(method)
	return invoke(ctx, method, req, reply, conn, opts...)
}

func (c *messageCounter) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, err
	}
	return &countedStream{s, c, method}, nil
}

type countedStream struct {
	grpc.ClientStream
	counter *messageCounter
	method  string
}

func (s *countedStream) SendMsg(m any) error {
	s.counter.count(s.method)
	return s.ClientStream.SendMsg(m)
}

func (c *messageCounter) count(method string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent[method]++
}

// messages returns the number of messages to methods whose full names, such as
// "/etcdserverpb.Lease/LeaseGrant", end in suffix. An empty suffix matches all methods.
func (c *messageCounter) messages(suffix string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for method, count := range c.sent {
		if strings.HasSuffix(method, suffix) {
			n += count
		}
	}
	return n
}
