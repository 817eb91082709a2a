package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
)

// format is the value of --output.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
)

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }

func (f *format) Set(value string) error {
	switch format(value) {
	case formatTable, formatWide, formatJSON:
		*f = format(value)
		return nil
	}
	return errors.New("it is table, wide or json")
}

// outputFlag defines --output.
func outputFlag(cmd *cobra.Command, f *format) {
	*f = formatTable
	cmd.Flags().VarP(f, "output", "o", "how to print: table, wide or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// row is an entry as it is shown.
type row struct {
	Name string `json:"name"`
	show.Entry
	Waiters *int `json:"waiters,omitempty"` // of ls
}

// stateFree is the state of a name that nobody holds, in what watch prints.
const stateFree = "free"

// rowOf returns an entry as it is shown.
func rowOf(e locker.Entry) row { return row{Name: e.Name, Entry: show.EntryOf(e)} }

func (r row) kind() string { return show.Kind(r.Limit) }

// holding returns the state and the kind of a holder.
func (r row) holding() string {
	if r.Limit == 1 {
		return r.State
	}
	return r.State + ", " + r.kind()
}

// value returns the value, abbreviated unless f is wide.
func (r row) value(f format) string {
	const limit = 60
	switch {
	case r.Value == "":
		return `""`
	case f == formatWide:
		return printable(r.Value)
	}
	return show.Beginning(r.Value, limit)
}

func (r row) process() string {
	if r.Owner == nil {
		return show.Unknown
	}
	return show.Process(*r.Owner)
}

func (r row) program() string {
	if r.Owner == nil || r.Owner.Program == "" {
		return show.Unknown
	}
	return printable(r.Owner.Program)
}

func (r row) since() string {
	if r.Owner == nil || r.Owner.Start.IsZero() {
		return show.Unknown
	}
	return r.Owner.Start.UTC().Format(time.DateTime + "Z")
}

func (r row) version() string {
	if r.Owner == nil || r.Owner.Version == "" {
		return show.Unknown
	}
	return printable(r.Owner.Version)
}

func (r row) lease() string {
	if r.Lease == "" {
		return "none"
	}
	return r.Lease
}

// ttl returns the time to live that is left, of that which was granted.
func (r row) ttl() string {
	if r.TTL == nil {
		return show.Unknown
	}
	return fmt.Sprintf("%ds/%ds", *r.TTL, *r.Granted)
}

// printable returns a text as it may be printed.
func printable(text string) string { return show.Text(text) }

// oneLine returns a message without what a terminal would obey, as one line.
func oneLine(text string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// printTable prints aligned columns.
func printTable(w io.Writer, header []string, lines [][]string) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, line := range lines {
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	_ = t.Flush() // into memory
	return output(w, b.Bytes())
}

// printJSON prints a document on one line, or indented. Beyond what JSON asks for, it
// escapes whatever a terminal would obey.
func printJSON(w io.Writer, document any, indent string) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", indent)
	if err := encoder.Encode(document); err != nil {
		return err
	}
	var safe bytes.Buffer
	for _, r := range b.String() {
		if r == '\n' || unicode.IsPrint(r) {
			safe.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&safe, `\u%04x`, unit)
		}
	}
	return output(w, safe.Bytes())
}

// output writes what a command has to say.
func output(w io.Writer, text []byte) error {
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("the output cannot be written: %w", err)
	}
	return nil
}
