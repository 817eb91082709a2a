package main

import (
	"fmt"
	"io"
	"os"
)

// progress is a line that says what goes on.
type progress struct {
	w        io.Writer
	terminal bool // the line is written over; otherwise, only what stays is written
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// show replaces the line.
func (p *progress) show(format string, args ...any) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K"+format, args...)
	}
}

// say writes a line that stays.
func (p *progress) say(format string, args ...any) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Write makes a progress of what others have to say.
func (p *progress) Write(b []byte) (int, error) {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	return p.w.Write(b)
}
