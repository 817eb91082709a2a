package main

import (
	"context"

	"github.com/jagregory/locker/v2"

	gocronlocker "github.com/jagregory/locker/contrib/gocron"
)

func init() { uses = append(uses, useGocron) }

func useGocron(ctx context.Context, client *locker.Client) (string, error) {
	jobs, err := gocronlocker.NewLocker(client)
	if err != nil {
		return "", err
	}
	lock, err := jobs.Lock(ctx, "job")
	if err != nil {
		return "", err
	}
	return "gocron", lock.Unlock(ctx)
}
