package main

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jagregory/locker/v2"

	promlocker "github.com/jagregory/locker/contrib/prometheus"
)

var metrics = promlocker.New()

func init() {
	options = append(options, locker.WithHooks(metrics.Hooks()))
	uses = append(uses, usePrometheus)
}

func usePrometheus(context.Context, *locker.Client) (string, error) {
	registry := prometheus.NewRegistry()
	if err := registry.Register(metrics); err != nil {
		return "", err
	}
	families, err := registry.Gather()
	if err != nil {
		return "", err
	}
	for _, family := range families {
		if family.GetName() == "locker_lock_hold_duration_seconds" {
			return "prometheus", nil
		}
	}
	return "", fmt.Errorf("no lock is counted in %v", families)
}
