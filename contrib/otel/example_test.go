package otellocker_test

import (
	"context"
	"fmt"
	"log"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/jagregory/locker/contrib/otel"
	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// The name of a lock is recorded up to its first slash.
func ExampleHooks() {
	server, err := embedtest.New() // a program has a cluster instead
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	etcd, err := clientv3.New(server.ClientConfig())
	if err != nil {
		log.Fatal(err)
	}
	defer etcd.Close()
	reader, spans := sdkmetric.NewManualReader(), tracetest.NewSpanRecorder() // and exporters

	hooks, err := otellocker.Hooks(
		otellocker.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))),
		otellocker.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))),
		otellocker.WithNames(func(name string) string {
			kind, _, _ := strings.Cut(name, "/")
			return kind
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	client, err := locker.New(etcd, locker.WithTTL(time.Minute), locker.WithHooks(hooks))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	err = client.Do(context.Background(), "invoice/4711", "", func(context.Context, *locker.Lock) error { return nil })
	if err != nil {
		log.Fatal(err)
	}

	for _, span := range spans.Ended() {
		fmt.Println("span", span.Name())
	}
	var recorded metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &recorded); err != nil {
		log.Fatal(err)
	}
	for _, metric := range recorded.ScopeMetrics[0].Metrics {
		if data, ok := metric.Data.(metricdata.Histogram[float64]); ok {
			for _, point := range data.DataPoints {
				fmt.Println(metric.Name, point.Count, point.Attributes.ToSlice())
			}
		}
	}
	// Output:
	// span locker.wait
	// span locker.hold
	// locker.lock.wait.duration 1 [{"locker.name":"invoice"} {"locker.verb":"Do"}]
	// locker.lock.hold.duration 1 [{"locker.end":"released"} {"locker.name":"invoice"}]
}
