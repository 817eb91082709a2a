package main

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"
)

// wire counts the messages that connections send to etcd, by method.
type wire struct {
	mu   sync.Mutex // guards sent
	sent map[string]int
}

func newWire() *wire { return &wire{sent: make(map[string]int)} }

func (w *wire) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(w.unary), grpc.WithChainStreamInterceptor(w.stream)}
}

func (w *wire) unary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	w.count(method)
	return invoke(ctx, method, req, reply, conn, opts...)
}

func (w *wire) stream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, err
	}
	return &countedStream{s, w, method}, nil
}

type countedStream struct {
	grpc.ClientStream
	wire   *wire
	method string
}

func (s *countedStream) SendMsg(m any) error {
	s.wire.count(s.method)
	return s.ClientStream.SendMsg(m)
}

func (w *wire) count(method string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[method]++
}

// messages returns how many were sent to methods whose names, such as
// "/etcdserverpb.Lease/LeaseGrant", end in suffix; all of them if that is empty.
func (w *wire) messages(suffix string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for method, count := range w.sent {
		if strings.HasSuffix(method, suffix) {
			n += count
		}
	}
	return n
}
