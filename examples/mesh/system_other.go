//go:build !unix

package main

import (
	"context"
	"os/exec"
)

// signalHelp is the part of the usage about signals.
const signalHelp = "(This system has no signals to switch its health by.)"

// obey has nothing to obey here.
func (h *health) obey(context.Context) {}

// inGroup leaves a command as it is: there are no process groups here.
func inGroup(*exec.Cmd) {}
