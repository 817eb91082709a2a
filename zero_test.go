package locker_test

import (
	"context"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
	statesType  = reflect.TypeFor[iter.Seq2[locker.State, error]]()
)

// invoke calls a method of a value with good arguments, and ctx where it takes a context. It
// returns the errors that the method returned, or yielded, and what else it returned.
func invoke(t *testing.T, on any, method string, ctx context.Context, given map[reflect.Type]any) (errs []error, others []reflect.Value) {
	t.Helper()
	m := reflect.ValueOf(on).MethodByName(method)
	in := make([]reflect.Value, 0, m.Type().NumIn())
	for i := range m.Type().NumIn() {
		switch of := m.Type().In(i); {
		case m.Type().IsVariadic() && i == m.Type().NumIn()-1:
		case of == contextType && ctx == nil:
			in = append(in, reflect.Zero(contextType))
		case of == contextType:
			in = append(in, reflect.ValueOf(ctx))
		case of.Kind() == reflect.String:
			in = append(in, reflect.ValueOf("b"))
		case given[of] != nil:
			in = append(in, reflect.ValueOf(given[of]))
		case of.Kind() == reflect.Chan:
			in = append(in, reflect.Zero(of))
		default:
			t.Fatalf("%s takes a %v, which this test does not know", method, of)
		}
	}
	for _, out := range m.Call(in) {
		switch {
		case out.Type() == errorType:
			err, _ := out.Interface().(error)
			errs = append(errs, err)
		case out.Type() == statesType:
			errs = append(errs, lastError(out.Interface().(iter.Seq2[locker.State, error])))
		default:
			others = append(others, out)
		}
	}
	return errs, others
}

// arguments are those that are neither contexts, strings nor channels.
func arguments(t *testing.T) map[reflect.Type]any {
	never := func(context.Context, *locker.Lock) error { t.Error("fn was called"); return nil }
	return map[reflect.Type]any{reflect.TypeOf(never): never, reflect.TypeFor[*concurrency.Session](): new(concurrency.Session)}
}

func TestZeroValues_SayThatNewIsNeeded(t *testing.T) {
	t.Parallel()
	var noClient *locker.Client
	var noLock *locker.Lock
	var noSession *locker.Session
	values := []any{new(locker.Client), new(locker.Lock), new(locker.Session), new(locker.Cache), new(locker.Compat), new(locker.Client).Compat(), noClient.Compat()}
	for _, value := range values {
		of := reflect.TypeOf(value)
		for i := range of.NumMethod() {
			method := of.Method(i).Name
			t.Run(fmt.Sprintf("%v.%s", of.Elem(), method), func(t *testing.T) {
				if of == reflect.TypeFor[*locker.Compat]() && method == "Close" {
					return // there is something to close if it came from a Client
				}
				errs, others := invoke(t, value, method, within(t), arguments(t))
				for _, err := range errs {
					want(t, err, locker.ErrInvalid)
					wantWrappedOnce(t, err)
					if !strings.Contains(err.Error(), "use New") {
						t.Errorf("%v", err)
					}
				}
				for _, other := range others {
					switch v := other.Interface().(type) {
					case context.Context:
						want(t, context.Cause(v), locker.ErrInvalid)
					case time.Duration:
						if v < time.Hour {
							t.Errorf("an age of %v", v)
						}
					case []clientv3.Cmp, *locker.Compat: // etcd refuses the one, the other refuses
					case []locker.Holder:
						if len(v) > 0 {
							t.Errorf("holders %v", v)
						}
					default:
						if !other.IsZero() {
							t.Errorf("%v", v)
						}
					}
				}
			})
		}
	}
	want(t, noLock.Unlock(within(t)), locker.ErrInvalid)
	want(t, noLock.SetValue(within(t), "v"), locker.ErrInvalid)
	want(t, noLock.Err(), locker.ErrInvalid)
	want(t, noClient.Close(), locker.ErrInvalid)
	want(t, noSession.Close(), locker.ErrInvalid)
	_, err := noClient.Lock(within(t), "a", "v")
	want(t, err, locker.ErrInvalid)
	want(t, new(locker.Compat).Close(), locker.ErrInvalid)
}

func TestZeroValues_AreRefusedAsArguments(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	_, err := c.Lock(ctx, "a", "v", locker.WithSession(new(locker.Session)))
	want(t, err, locker.ErrInvalid)
	_, err = c.AdoptSession(new(concurrency.Session))
	want(t, err, locker.ErrInvalid)
	_, err = b.etcd.Txn(ctx).If(new(locker.Lock).Guard()...).Then(clientv3.OpPut("written", "yes")).Commit()
	if err == nil || b.value(t, "written") != "" {
		t.Errorf("written under the guard of no lock: %v", err)
	}
}

func TestNilContext_IsRefusedBeforeAnythingChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	etcd, requests := countedEtcd(t, b.server)
	c := newClient(t, etcd, locker.WithTTL(5*time.Minute)) // so that nothing is renewed meanwhile
	l := lock(t, c, "a", "v")
	tried := make(map[string]bool)
	for _, value := range []any{c, l} {
		of := reflect.TypeOf(value)
		for i := range of.NumMethod() {
			method := of.Method(i)
			if method.Type.NumIn() < 2 || method.Type.In(1) != contextType {
				continue
			}
			tried[method.Name] = true
			before := requests.Load()
			errs, _ := invoke(t, value, method.Name, nil, arguments(t))
			for _, err := range errs {
				wantInvalid(t, err, "context")
				wantWrappedOnce(t, err)
			}
			if n := requests.Load() - before; n != 0 || len(errs) != 1 {
				t.Errorf("%s: %d requests, %d errors", method.Name, n, len(errs))
			}
		}
	}
	for verb := range verbs(c) {
		if !tried[verb] {
			t.Errorf("%s was not tried", verb)
		}
	}
	if l.Err() != nil || l.Value() != "v" || !tried["Unlock"] {
		t.Errorf("the hold has changed: %v, %q", l.Err(), l.Value())
	}
	unlock(t, l)
	unlock(t, lock(t, c, "a", "next")) // the name is not dead
	unlock(t, lock(t, c, "b", "next"))
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
