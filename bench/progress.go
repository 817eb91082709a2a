package main

import (
	"fmt"
	"io"
	"os"
)

// progress shows the current state of the run in a line of a terminal, and logs lines
// above it.
type progress struct {
	w        io.Writer
	terminal bool // if not, only the logged lines are written
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// show replaces the status line.
func (p *progress) show(format string, args ...any) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K"+format, args...)
	}
}

// logf writes a line that stays.
func (p *progress) logf(format string, args ...any) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Write implements io.Writer for the output of other programs.
func (p *progress) Write(b []byte) (int, error) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	return p.w.Write(b)
}
