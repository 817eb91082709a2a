package main

import (
	"bytes"
	"encoding/base64"
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
	"unicode/utf8"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
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

// unknown stands for what is not known.
const unknown = "–"

// row is an entry as it is shown. Its JSON is an interface: fields are added, and none is
// renamed or removed.
type row struct {
	Name    string        `json:"name"`
	Key     string        `json:"key"`
	State   string        `json:"state"`
	Kind    string        `json:"kind"`
	Limit   int           `json:"limit"`
	Value   string        `json:"value"`
	Binary  string        `json:"value_base64,omitempty"` // if the value is not text
	Token   int64         `json:"token"`
	Lease   string        `json:"lease"`
	TTL     *int64        `json:"ttl_left_seconds"`
	Granted *int64        `json:"ttl_granted_seconds"`
	Owner   *locker.Owner `json:"owner"`
	Waiters *int          `json:"waiters,omitempty"` // of ls
}

// States of a row.
const (
	stateHeld    = "held"
	stateWaiting = "waiting"
	stateFree    = "free" // of a name, in what watch prints
)

// rowOf returns an entry as it is shown.
func rowOf(e locker.Entry) row {
	r := row{Name: e.Name, Key: e.Key, State: stateWaiting, Limit: e.Limit, Value: e.Value, Token: e.Token, Lease: leaseID(e.Lease)}
	if e.Held {
		r.State = stateHeld
	}
	switch e.Limit {
	case 0:
		r.Kind = "shared"
	case 1:
		r.Kind = "exclusive"
	default:
		r.Kind = "limited"
	}
	if !utf8.ValidString(e.Value) {
		r.Binary = base64.StdEncoding.EncodeToString([]byte(e.Value))
	}
	if e.Owner != (locker.Owner{}) {
		r.Owner = &e.Owner
	}
	return r
}

// leaseID returns a lease as etcdctl writes it, empty if there is none.
func leaseID(id clientv3.LeaseID) string {
	if id == 0 {
		return ""
	}
	return strconv.FormatInt(int64(id), 16)
}

func (r row) kind() string {
	if r.Kind == "limited" {
		return "limit " + strconv.Itoa(r.Limit)
	}
	return r.Kind
}

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
	text := r.Value
	if f != formatWide && utf8.RuneCountInString(text) > limit {
		return printable(string([]rune(text)[:limit])) + "…"
	}
	if text == "" {
		return `""`
	}
	return printable(text)
}

func (r row) process() string {
	if r.Owner == nil {
		return unknown
	}
	return printable(r.Owner.Host) + ":" + strconv.Itoa(r.Owner.PID)
}

func (r row) program() string {
	if r.Owner == nil || r.Owner.Program == "" {
		return unknown
	}
	return printable(r.Owner.Program)
}

func (r row) since() string {
	if r.Owner == nil || r.Owner.Start.IsZero() {
		return unknown
	}
	return r.Owner.Start.UTC().Format(time.DateTime + "Z")
}

func (r row) version() string {
	if r.Owner == nil || r.Owner.Version == "" {
		return unknown
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
		return unknown
	}
	return fmt.Sprintf("%ds/%ds", *r.TTL, *r.Granted)
}

// printable returns a text as it may be printed. A text with anything in it that a terminal
// would obey or not show is quoted, and so is one that looks quoted.
func printable(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) && !strings.HasPrefix(text, `"`) {
		return text
	}
	return strconv.Quote(text)
}

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
