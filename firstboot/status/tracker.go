package status

import (
	"slices"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Level says how loud a line is.
type Level int

const (
	Info Level = iota
	Warning
	Error
)

// Watcher is shown every change.
type Watcher interface {
	// Show takes the report as it now is. It must not block.
	Show(r Report)
	// Line takes one line of the story.
	Line(level Level, text string)
}

// Tracker gathers the report. It is safe for use by several goroutines.
type Tracker struct {
	mu       sync.Mutex
	report   Report
	now      func() time.Time
	watchers []Watcher
}

// NewTracker begins a report.
func NewTracker(begin Report, now func() time.Time, watchers ...Watcher) *Tracker {
	begin.Format, begin.State, begin.Since = Format, Starting, now().UTC()
	return &Tracker{report: begin, now: now, watchers: watchers}
}

// Report is the report as it now is.
func (t *Tracker) Report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.report.Clone()
}

// Update changes the report and shows it if that made a difference to what is
// said in lines.
func (t *Tracker) Update(change func(*Report), lines ...string) {
	t.change(Info, change, lines...)
}

// Alert is Update for bad news.
func (t *Tracker) Alert(level Level, change func(*Report), lines ...string) {
	t.change(level, change, lines...)
}

func (t *Tracker) change(level Level, change func(*Report), lines ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.report)
	for _, w := range t.watchers {
		for _, line := range lines {
			w.Line(level, line)
		}
		w.Show(t.report.Clone())
	}
}

// SetState moves the node to a state; since stays when it is the same.
func (t *Tracker) SetState(s State) {
	t.Update(func(r *Report) {
		if r.State != s {
			r.State, r.Since = s, t.now().UTC()
		}
	})
}

// Begin announces a round of steps; what the round before said is gone.
func (t *Tracker) Begin(names []string) {
	t.mu.Lock()
	now := t.now().UTC()
	t.report.Steps = nil
	for _, name := range names {
		t.report.Steps = append(t.report.Steps, Step{Name: name, State: Pending, Since: now})
	}
	t.report.Warnings, t.report.HostKeys, t.report.Logins = nil, nil, nil
	t.mu.Unlock()
	t.Update(func(*Report) {})
}

// Keep drops all steps but these from the round.
func (t *Tracker) Keep(names []string) {
	t.Update(func(r *Report) {
		r.Steps = slices.DeleteFunc(r.Steps, func(s Step) bool { return !slices.Contains(names, s.Name) })
	})
}

// Step is the handle of one step; it implements node.Reporter.
func (t *Tracker) Step(name string) *StepHandle { return &StepHandle{tracker: t, name: name} }

// StepHandle reports on one step.
type StepHandle struct {
	tracker *Tracker
	name    string
}

func (h *StepHandle) change(level Level, change func(*Step), lines ...string) {
	h.tracker.change(level, func(r *Report) {
		for i := range r.Steps {
			if r.Steps[i].Name == h.name {
				change(&r.Steps[i])
			}
		}
	}, lines...)
}

// Start says that the step is under way.
func (h *StepHandle) Start() {
	h.change(Info, func(s *Step) { s.State, s.Since, s.Error, s.WaitingFor = Running, h.tracker.now().UTC(), "", "" })
}

// step is the step as it now is.
func (h *StepHandle) step() (s Step) {
	steps := h.tracker.Report().Steps
	if i := slices.IndexFunc(steps, func(s Step) bool { return s.Name == h.name }); i >= 0 {
		s = steps[i]
	}
	return s
}

// End says how the step ended. A step that changed nothing ends without a word,
// and so does one that failed before in the same way.
func (h *StepHandle) End(err error) {
	end := func(state StepState, text string) func(*Step) {
		return func(s *Step) { s.State, s.Since, s.WaitingFor, s.Error = state, h.tracker.now().UTC(), "", text }
	}
	if err == nil {
		h.change(Info, end(Done, ""))
		return
	}
	text := told(err)
	if was := h.step(); was.State == Broken && was.Error == text {
		return
	}
	h.change(Error, end(Broken, text), h.name+": "+text)
}

// told is an error with what a person can do about it, if it says.
func told(err error) string {
	if mend := fault.Mend(err); mend != "" {
		return err.Error() + " (to mend it: " + mend + ")"
	}
	return err.Error()
}

// Waiting implements node.Reporter. A step that waits is under way, also if it
// failed before.
func (h *StepHandle) Waiting(what string) {
	was := h.step()
	if was.WaitingFor == what {
		return
	}
	var lines []string
	if what != "" {
		lines = []string{h.name + ": " + what}
	}
	h.change(Info, func(s *Step) {
		if s.State == Broken && what != "" {
			s.State, s.Since, s.Error = Running, h.tracker.now().UTC(), ""
		}
		s.WaitingFor = what
	}, lines...)
}

// Changed implements node.Reporter.
func (h *StepHandle) Changed(what string) {
	h.change(Info, func(s *Step) { s.Changed = append(s.Changed, what) }, h.name+": "+what)
}

// Warn implements node.Reporter.
func (h *StepHandle) Warn(w node.Warning) {
	if w.Where == "" {
		w.Where = h.name
	}
	h.tracker.Alert(Warning, func(r *Report) {
		if !slices.Contains(r.Warnings, w) {
			r.Warnings = append(r.Warnings, w)
		}
	}, w.String())
}

// HostKey implements node.Reporter.
func (h *StepHandle) HostKey(name, fingerprint string) {
	key := HostKey{name, fingerprint}
	h.tracker.Update(func(r *Report) {
		if !slices.Contains(r.HostKeys, key) {
			r.HostKeys = append(r.HostKeys, key)
		}
	})
}

// Login implements node.Reporter.
func (h *StepHandle) Login(user string) {
	h.tracker.Update(func(r *Report) {
		if !slices.Contains(r.Logins, user) {
			r.Logins = append(r.Logins, user)
		}
	})
}

// Say implements node.Reporter.
func (h *StepHandle) Say(line string) { h.tracker.Update(func(*Report) {}, line) }
