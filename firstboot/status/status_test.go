package status

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

type watcher struct{ lines []string }

func (*watcher) Show(Report)                 {}
func (w *watcher) Line(_ Level, text string) { w.lines = append(w.lines, text) }

func tracked() (*Tracker, *watcher) {
	w := &watcher{}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	t := NewTracker(Report{Role: "balancer", Version: "v1"}, func() time.Time { now = now.Add(time.Second); return now }, w)
	t.Begin([]string{"network", "users", "role"})
	return t, w
}

func TestTheReportTellsWhichStepSinceWhenWaitingForWhat(t *testing.T) {
	tracker, w := tracked()
	network := tracker.Step("network")
	network.Start()
	network.Changed("wrote a file")
	network.End(nil)
	users := tracker.Step("users")
	users.Start()
	users.Warn(node.Warning{Where: "user-data:3", Key: "users", Message: "odd"})
	users.End(errors.New("no such group"))
	role := tracker.Step("role")
	role.Start()
	role.Waiting("haproxy.service is activating")
	role.Waiting("haproxy.service is activating")
	r := tracker.Report()
	if r.Steps[0].State != Done || r.Steps[1].State != Broken || r.Steps[1].Error != "no such group" || r.Steps[2].WaitingFor != "haproxy.service is activating" {
		t.Errorf("%+v", r.Steps)
	}
	want := "network: wrote a file|user-data:3: users: odd|users: no such group|role: haproxy.service is activating"
	if got := strings.Join(w.lines, "|"); got != want {
		t.Errorf("the story is %q, want %q", got, want)
	}
	text := r.Text(r.Steps[2].Since.Add(90*time.Second), Plain)
	for _, want := range []string{"[ ok ] network         wrote a file", "[FAIL] users           no such group", "[ .. ] role            for 1 min 30 s: haproxy.service is activating", "! user-data:3: users: odd"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q:\n%s", want, text)
		}
	}
	if screen := r.Screen(time.Now()); strings.Count(screen, "\n") > 20 || !strings.Contains(screen, "haproxy.service is activating") {
		t.Errorf("the screen is\n%s", screen)
	}
}

func TestTheTextCannotSteerATerminal(t *testing.T) {
	r := Report{Role: "a\x1b[2J", Hostname: "h\r\n", Warnings: []node.Warning{{Where: "x", Message: "\x9b1m\x07"}}}
	if text := r.Text(time.Now(), Plain); strings.ContainsAny(text, "\x1b\r\x07\u009b") {
		t.Errorf("%q", text)
	}
}

func TestANodeThatMissesOthersIsUpAndOneAtWorkIsNot(t *testing.T) {
	for state, want := range map[State]bool{Ready: true, Degraded: true, Maintenance: true, Starting: false, Converging: false, Unconfigured: false, Failed: false, Removed: false} {
		if state.Up() != want {
			t.Errorf("%s: up is %t", state, !want)
		}
	}
}

func TestListsOfTheReportAreNeverNull(t *testing.T) {
	tracker, _ := tracked()
	text, err := json.Marshal(tracker.Report())
	if err != nil || strings.Contains(string(text), "null") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestTheAgentAnswersAndItsLastReportStaysBehind(t *testing.T) {
	tracker, _ := tracked()
	dir := t.TempDir()
	socket, last := dir+"/agent.sock", dir+"/status.json"
	if _, _, err := Ask(t.Context(), socket, last); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("without an agent: %v", err)
	}
	if err := Serve(t.Context(), socket, tracker); err != nil {
		t.Fatal(err)
	}
	tracker.SetState(Ready)
	r, live, err := Wait(t.Context(), socket, last, time.Minute)
	if err != nil || !live || r.State != Ready {
		t.Errorf("%v, live %v, %v", r.State, live, err)
	}
	if err := Keep(last, r); err != nil {
		t.Fatal(err)
	}
	if r, live, err = Ask(t.Context(), dir+"/nobody", last); err != nil || live || r.Role != "balancer" {
		t.Errorf("%+v, live %v, %v", r, live, err)
	}
}

func TestAStepThatFailsSaysHowToMendIt(t *testing.T) {
	tracker := NewTracker(Report{}, time.Now)
	tracker.Begin([]string{"database"})
	tracker.Step("database").End(fault.New(fault.Input, "the data directory is another cluster's").WithMend("move it away"))
	if got := tracker.Report().Steps[0].Error; got != "the data directory is another cluster's (to mend it: move it away)" {
		t.Error(got)
	}
}
