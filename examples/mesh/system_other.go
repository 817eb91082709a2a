//go:build !unix

package main

import (
	"context"
	"os/exec"
)

// signalHelp is the sentence of the usage about signals.
const signalHelp = "(On this system, there are no signals to mark it.)"

// handleSignals does nothing: there are no suitable signals on this system.
func (h *health) handleSignals(context.Context) {}

// setProcessGroup does nothing: there are no process groups on this system.
func setProcessGroup(*exec.Cmd) {}
