package actions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newLog(t testing.TB) *Log {
	t.Helper()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return &Log{Path: filepath.Join(t.TempDir(), "state", "audit.jsonl"), Now: func() time.Time {
		at = at.Add(time.Second)
		return at
	}}
}

func (l *Log) add(t testing.TB, action, outcome string) {
	t.Helper()
	end, err := l.Begin(Entry{By: "ann@desk", Action: action, Args: json.RawMessage(`{"a":1}`)})
	if err == nil {
		err = end(outcome)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *Log) actions(t testing.TB, n int) string {
	t.Helper()
	entries, err := l.Read(n)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, e := range entries {
		word := e.Action + ":" + e.Outcome
		if e.Ended.IsZero() {
			word += "open"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func TestTheLogIsRootsAloneAndTellsOfEachActionItsBeginningAndEnd(t *testing.T) {
	l := newLog(t)
	if got := l.actions(t, 10); got != "" {
		t.Errorf("a log that was never written: %s", got)
	}
	end, err := l.Begin(Entry{By: "ann@desk", Action: "one"})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.actions(t, 10); got != "one:open" {
		t.Errorf("while it goes on: %s", got)
	}
	if err := end("done"); err != nil {
		t.Fatal(err)
	}
	l.add(t, "two", "no room")
	if got := l.actions(t, 10); got != "one:done two:no room" {
		t.Errorf("log: %s", got)
	}
	info, err := os.Stat(l.Path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A power cut leaves any beginning of the last line, or zeros in its place. What
// was there before counts, and so does what comes after.
func TestAPowerCutAtAnyByteLosesNoOtherLine(t *testing.T) {
	l := newLog(t)
	l.add(t, "one", "done")
	before, err := os.ReadFile(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	l.add(t, "two", "done")
	whole, err := os.ReadFile(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole[len(before):], []byte("\n"))
	begin := len(before) + len(lines[0])
	for cut := len(before); cut <= len(whole); cut++ {
		for _, tail := range [][]byte{nil, make([]byte, 7)} {
			if err := os.WriteFile(l.Path, append(bytes.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			l.add(t, "three", "done")
			want := "one:done three:done"
			switch { // a line that lacks nothing but its end is whole
			case cut == len(whole), cut == len(whole)-1 && tail == nil:
				want = "one:done two:done three:done"
			case cut >= begin, cut == begin-1 && tail == nil:
				want = "one:done two:open three:done"
			}
			if got := l.actions(t, 10); got != want {
				t.Fatalf("cut at byte %d of %d, %d zeros: %s, want %s", cut, len(whole), len(tail), got, want)
			}
		}
	}
}

func TestTheLogIsBoundedAndTheFormerOneStays(t *testing.T) {
	l := newLog(t)
	l.add(t, "first", "done")
	fill := bytes.Repeat([]byte("x"), logSize)
	for _, name := range []string{"second", "third"} {
		f, err := os.OpenFile(l.Path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Write(append(fill, '\n'))
		f.Close()
		l.add(t, name, "done")
	}
	if got := l.actions(t, 10); got != "second:done third:done" {
		t.Errorf("after two rotations: %s", got)
	}
	found, err := filepath.Glob(l.Path + "*")
	if err != nil || len(found) != 2 {
		t.Errorf("files: %q, %v", found, err)
	}
	large, err := json.Marshal(strings.Repeat("x", 50_000))
	if err != nil {
		t.Fatal(err)
	}
	end, err := l.Begin(Entry{Action: "large", Args: large})
	if err == nil {
		err = end(strings.Repeat("y", 50_000))
	}
	entries, readErr := l.Read(1)
	if err != nil || readErr != nil || len(entries[0].Args) > maxLogged || len(entries[0].Outcome) > maxLogged {
		t.Errorf("large arguments: %v, %v, %d and %d bytes", err, readErr, len(entries[0].Args), len(entries[0].Outcome))
	}
}

func TestTheLogIsWrittenForPeople(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	text := Text([]Entry{
		{At: at, Ended: at.Add(3 * time.Second), By: "ann@desk", From: "10.0.0.1:4", Action: "switchover", Args: json.RawMessage(`{"a":1}`), Outcome: "done"},
		{At: at, By: "\x1b[2J", Action: "plan"},
		{At: at, Ended: at, Action: "x", Outcome: "no room"},
	})
	for _, want := range []string{"2026-03-01 12:00:00  switchover {\"a\":1}  by ann@desk (10.0.0.1:4): done in 3 s\n", "did not end, or goes on", "failed: no room"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") || Text(nil) != "  nothing yet\n" {
		t.Errorf("%q", text)
	}
}

func FuzzLog(f *testing.F) {
	l := newLog(f)
	l.add(f, "one", "done")
	whole, err := os.ReadFile(l.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"id":"x","at":"2026-03-01T12:00:00Z","action":"a"}` + "\n\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLog(t)
		if err := os.MkdirAll(filepath.Dir(l.Path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l.Path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l.add(t, "after", "done")
		if got := l.actions(t, 1); got != "after:done" {
			t.Errorf("after %q: %s", data, got)
		}
	})
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte("{\"say\":\"a\"}\n{\"alive\":true}\n{\"done\":true,\"result\":{\"x\":1}}\n"))
	f.Add([]byte("{\"error\":\"no\",\"mend\":\"yes\",\"class\":\"input\"}\n"))
	f.Add([]byte("{\"say\":\"torn"))
	f.Fuzz(func(t *testing.T, data []byte) {
		events := 0
		result, err := ReadEvents(bytes.NewReader(data), func(e Event) {
			if events++; e.Done || e.Error != "" || len(e.Say) > maxSay {
				t.Errorf("event %+v", e)
			}
		})
		if err == nil && !bytes.Contains(data, []byte("\n")) {
			t.Errorf("an answer without a whole line is done: %s", result)
		}
		if lines := bytes.Count(data, []byte("\n")); events > lines {
			t.Errorf("%d events of %d lines", events, lines)
		}
	})
}

func TestEventsEndWithWhatTheLastLineSays(t *testing.T) {
	for in, want := range map[string]string{
		`{"done":true,"result":[1]}` + "\n": "[1] <nil>",
		`{"say":"x"}` + "\n":                " " + ErrCutOff.Error(),
		`{"done":true}`:                     " " + ErrCutOff.Error(),
		`{"error":"no"}` + "\n":             " no",
		"\n":                                " answered something that is no JSON",
		strings.Repeat("x", maxLine+1):      " answered with a line of more than 1 MiB",
		`{"say":"x","future":1}` + "\n" + `{"done":true}` + "\n" + "{}": " <nil>",
	} {
		result, err := ReadEvents(strings.NewReader(in), func(Event) {})
		if got := fmt.Sprintf("%s %v", result, err); got != want {
			t.Errorf("%.60q: %s, want %s", in, got, want)
		}
	}
}
