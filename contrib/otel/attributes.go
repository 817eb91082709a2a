package otellocker

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
)

const (
	nameKey   = attribute.Key("locker.name")
	verbKey   = attribute.Key("locker.verb")
	aheadKey  = attribute.Key("locker.ahead")
	tokenKey  = attribute.Key("locker.token")
	endKey    = attribute.Key("locker.end")
	reasonKey = attribute.Key("locker.reason")
	causeKey  = attribute.Key("locker.cause")
)

// ending is how a hold has ended.
type ending struct {
	name string
	lost bool
}

func endOf(cause error) ending {
	var loss *locker.LostError
	switch {
	case errors.As(cause, &loss):
		return ending{loss.Reason.String(), true}
	case errors.Is(cause, locker.ErrClosed):
		return ending{name: "closed"}
	}
	return ending{name: "released"}
}

// fail gives a span the status of a failure. The description is left empty, because the text
// of an error has names and values in it.
func fail(span trace.Span, failure attribute.KeyValue) {
	span.SetAttributes(failure)
	span.SetStatus(otelcodes.Error, "")
}

// errorType classifies the error of a call that had that context.
func errorType(ctx context.Context, err error) attribute.KeyValue {
	// First, because the cause may be anything, and beside it in the chain there may be who was
	// in the way and the last error of etcd.
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return semconv.ErrorTypeKey.String("deadline")
		}
		return semconv.ErrorTypeKey.String("canceled")
	}
	for _, t := range errorTypes {
		if errors.Is(err, t.err) {
			return semconv.ErrorTypeKey.String(t.name)
		}
	}
	var etcd interface{ Code() codes.Code } // as etcd's client returns errors that it knows
	if errors.As(err, &etcd) {
		return semconv.ErrorTypeKey.String(etcd.Code().String())
	}
	if s, ok := status.FromError(err); ok {
		return semconv.ErrorTypeKey.String(s.Code().String())
	}
	return semconv.ErrorTypeOther
}

// errorTypes are the errors of this library. The first that matches counts.
var errorTypes = []struct {
	err  error
	name string
}{
	{locker.ErrEtcdClosed, "etcd_closed"}, // also if something was lost by that
	{locker.ErrLost, "lost"},
	{locker.ErrClosed, "closed"},
	{locker.ErrSessionFull, "session_full"},
	{locker.ErrLocked, "locked"},
}
