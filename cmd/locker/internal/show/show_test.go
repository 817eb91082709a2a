package show_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestMain(m *testing.M) { locktest.Main(m) }

func TestText_LeavesWhatIsPlainAsItIs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain text":   "plain text",
		"grüße 世界":     "grüße 世界",
		"":             "",
		`"quoted"`:     `"\"quoted\""`,
		"two\nlines":   `"two\nlines"`,
		"tab\tbetween": `"tab\tbetween"`,
	} {
		if got := show.Text(text); got != want {
			t.Errorf("show.Text(%q) is %s, want %s", text, got, want)
		}
	}
}

func TestBeginning_IsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "äöü": "äöü", "äöüß": "äöü…", "a\nbc": `"a\nb"…`} {
		if got := show.Beginning(text, 3); got != want {
			t.Errorf("the beginning of %q is %s, want %s", text, got, want)
		}
	}
}

func TestEntry_AsJSON(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		entry locker.Entry
		want  string
	}{
		{
			locker.Entry{Key: "locker/a/1", Held: true, Holder: locker.Holder{Name: "a", Value: "one", Token: 7, Lease: 255, Limit: 3}, Owner: locker.Owner{Host: "h", PID: 1}},
			`{"key":"locker/a/1","state":"held","kind":"limited","limit":3,"value":"one","token":7,"lease":"ff","ttl_left_seconds":null,"ttl_granted_seconds":null,"owner":{"host":"h","pid":1,`,
		},
		{
			locker.Entry{Holder: locker.Holder{Value: "\xff", Limit: 1}},
			`{"key":"","state":"waiting","kind":"exclusive","limit":1,"value":"\ufffd","value_base64":"/w==","token":0,"lease":"","ttl_left_seconds":null,"ttl_granted_seconds":null,"owner":null}`,
		},
	} {
		got, err := json.Marshal(show.EntryOf(test.entry))
		if err != nil || !strings.HasPrefix(string(got), test.want) {
			t.Errorf("%s, %v, want %s", got, err, test.want)
		}
	}
}

func TestProcess_OfNobodyIsUnknown(t *testing.T) {
	t.Parallel()
	if got := show.Process(locker.Owner{}); got != show.Unknown {
		t.Error(got)
	}
	if got := show.Process(locker.Owner{Host: "h\x1b", PID: 12}); got != `"h\x1b":12` {
		t.Error(got)
	}
}
