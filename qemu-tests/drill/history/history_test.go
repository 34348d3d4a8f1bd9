package history

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

func sample() []Op {
	return []Op{
		{Process: 1, Kind: Insert, Value: 7, Invoked: time.Second, Completed: 2 * time.Second, Outcome: Acknowledged, Server: "a-db1", Timeline: 1},
		{Process: 2, Kind: CAS, Key: "x", Value: 9, Expect: 4, Invoked: time.Second, Completed: 3 * time.Second, Outcome: Unknown, Error: "no answer"},
		{Process: 3, Kind: Insert, Value: 8, Direct: "a-db2", Outcome: Failed, Error: "read only"},
	}
}

func written(t *testing.T, ops []Op) *bytes.Buffer {
	t.Helper()
	var file bytes.Buffer
	w, err := NewWriter(&file, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range ops {
		w.Add(o)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(w.Ops(), ops) {
		t.Errorf("in memory: %+v", w.Ops())
	}
	return &file
}

func TestAHistoryComesBackFromItsFile(t *testing.T) {
	file := written(t, sample())
	h, ops, err := Parse(bytes.NewReader(file.Bytes()))
	if err != nil || h.Cluster != "shop" || h.Began.IsZero() || !reflect.DeepEqual(ops, sample()) {
		t.Fatalf("%+v, %+v, %v", h, ops, err)
	}
	// What a power cut leaves of the last line is no operation.
	_, ops, err = Parse(bytes.NewReader(file.Bytes()[:file.Len()-3]))
	if err != nil || len(ops) != 2 {
		t.Errorf("cut short: %d operations, %v", len(ops), err)
	}
}

func TestWhatIsNoHistoryIsRefused(t *testing.T) {
	header := `{"slipway_history":1,"began":"2026-11-20T12:00:00Z","cluster":"shop"}` + "\n"
	for why, text := range map[string]string{
		"nothing":            "",
		"another format":     `{"slipway_history":2,"began":"2026-11-20T12:00:00Z","cluster":"shop"}` + "\n",
		"no JSON":            header + "insert 7\n",
		"another field":      header + `{"process":1,"kind":"insert","outcome":"failed","x":1}` + "\n",
		"no such kind":       header + `{"process":1,"kind":"drop","outcome":"failed"}` + "\n",
		"no such outcome":    header + `{"process":1,"kind":"insert","outcome":"maybe"}` + "\n",
		"an end before":      header + `{"process":1,"kind":"insert","outcome":"failed","invoked":2,"completed":1}` + "\n",
		"a register's key":   header + `{"process":1,"kind":"write","outcome":"failed"}` + "\n",
		"two in a line":      header + `{"process":1,"kind":"insert","outcome":"failed"}{}` + "\n",
		"a line of 17 KiB":   header + `{"process":1,"kind":"insert","outcome":"failed","error":"` + strings.Repeat("x", 17<<10) + `"}` + "\n",
		"a timeline below 0": header + `{"process":1,"kind":"insert","outcome":"failed","timeline":-1}` + "\n",
	} {
		if _, _, err := Parse(strings.NewReader(text)); fault.Of(err) != fault.Input {
			t.Errorf("%s: %v", why, err)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAFullDiskIsSaidAndMemoryIsWhole(t *testing.T) {
	w, err := NewWriter(full{}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		w.Add(sample()[0])
	}
	if err := w.Flush(); err == nil || len(w.Ops()) != 1000 {
		t.Errorf("%v, %d operations", err, len(w.Ops()))
	}
}

func FuzzParse(f *testing.F) {
	var file bytes.Buffer
	w, err := NewWriter(&file, "shop")
	if err != nil {
		f.Fatal(err)
	}
	for _, o := range sample() {
		w.Add(o)
	}
	if err := w.Flush(); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		_, ops, err := Parse(bytes.NewReader(data))
		if err != nil && fault.Of(err) != fault.Input {
			t.Errorf("an error of another class: %v", err)
		}
		for _, o := range ops {
			if err := o.check(); err != nil {
				t.Error(err)
			}
		}
	})
}
