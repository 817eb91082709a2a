package main

import (
	"context"
	"log"

	"github.com/jagregory/locker/v2"

	otellocker "github.com/jagregory/locker/contrib/otel"
)

func init() {
	hooks, err := otellocker.Hooks()
	if err != nil {
		log.Fatal(err)
	}
	options = append(options, locker.WithHooks(hooks))
	uses = append(uses, func(context.Context, *locker.Client) (string, error) { return "otel", nil })
}
