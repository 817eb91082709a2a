package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jagregory/locker/v2"
)

// limit is how many calls the backend bears at one time. All programs have to agree on it:
// the smallest limit among the holders counts.
const limit = 3

// call makes a request while at most limit workers of all programs make one. It blocks
// until it is this worker's turn and the backend has answered, or ctx ends.
//
// When the worker can no longer be sure of its turn, the request is canceled, and made
// again at the next turn. So the backend may get it more than once.
func call(ctx context.Context, client *locker.Client, worker string, request *http.Request) error {
	answered := false
	err := client.Campaign(ctx, "backend", worker, func(ctx context.Context, _ *locker.Lock) error {
		response, err := http.DefaultClient.Do(request.Clone(ctx))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("backend: %s", response.Status)
		}
		answered = true
		return nil
	}, locker.WithLimit(limit))
	if answered {
		return nil // even if etcd has not confirmed the release, which the client then sees to
	}
	return err
}
