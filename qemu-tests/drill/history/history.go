// Package history models what clients of a database saw: each operation with the
// moments at which it was begun and answered, what came of it, and which server
// answered, on which timeline.
//
// In go operations while a drill runs, out comes a file of JSON lines, a header
// first, and from the file the operations again. The model is that of Jepsen and
// of Herlihy and Wing ("Linearizability: A Correctness Condition for Concurrent
// Objects", 1990), with a third outcome: an operation of which nobody knows
// whether it took effect may do so at any time later.
package history

import (
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Format is the version of the file's layout; fields are only ever added.
const Format = 1

// Kind is what an operation does.
type Kind string

const (
	Insert Kind = "insert" // puts a number into the set, each number once in a history
	Read   Kind = "read"   // of a register; one that was never written holds 0
	Write  Kind = "write"  // Value into a register
	CAS    Kind = "cas"    // Value into a register if it holds Expect
	Add    Kind = "add"    // Expect to what a register holds; Value is what it holds then
)

// Outcome is what came of an operation.
type Outcome string

const (
	Acknowledged Outcome = "acknowledged" // the server said that it is done
	Failed       Outcome = "failed"       // it was not done and never will be
	Unknown      Outcome = "unknown"      // nobody said: it may be done now, later or never
)

// Op is an operation of a client.
type Op struct {
	Process int    `json:"process"`
	Kind    Kind   `json:"kind"`
	Key     string `json:"key,omitempty"` // of a register
	Value   int64  `json:"value,omitempty"`
	Expect  int64  `json:"expect,omitempty"`
	// Applied is whether an acknowledged CAS found what it expected.
	Applied bool `json:"applied,omitempty"`
	// Direct is the node that was asked round the virtual address; "": through it.
	Direct string `json:"direct,omitempty"`

	Invoked   time.Duration `json:"invoked"`   // since the history began
	Completed time.Duration `json:"completed"` // when the client had the answer, or gave up
	Outcome   Outcome       `json:"outcome"`
	Server    string        `json:"server,omitempty"`   // that answered, by its certificate
	Timeline  int           `json:"timeline,omitempty"` // of the server's WAL when it did
	Error     string        `json:"error,omitempty"`
}

// Writes says whether the operation changes the database if it takes effect.
func (o Op) Writes() bool { return o.Kind != Read }

// Wrote says whether the operation is known to have changed the database.
func (o Op) Wrote() bool {
	return o.Writes() && o.Outcome == Acknowledged && (o.Kind != CAS || o.Applied)
}

// String is the operation as evidence: what, when, by whom.
func (o Op) String() string {
	what := string(o.Kind)
	switch o.Kind {
	case Insert:
		what = fmt.Sprintf("insert %d", o.Value)
	case Read:
		what = fmt.Sprintf("read %s = %d", o.Key, o.Value)
	case Write:
		what = fmt.Sprintf("write %s = %d", o.Key, o.Value)
	case CAS:
		what = fmt.Sprintf("cas %s from %d to %d", o.Key, o.Expect, o.Value)
		if o.Outcome == Acknowledged && !o.Applied {
			what += ", not applied"
		}
	case Add:
		what = fmt.Sprintf("add %s %d = %d", o.Key, o.Expect, o.Value)
	}
	text := fmt.Sprintf("%s, %s, %.3f s to %.3f s, process %d", what, o.Outcome, o.Invoked.Seconds(), o.Completed.Seconds(), o.Process)
	if o.Server != "" {
		text += fmt.Sprintf(", by %s", o.Server)
	}
	if o.Timeline != 0 {
		text += fmt.Sprintf(" on timeline %d", o.Timeline)
	}
	if o.Direct != "" {
		text += ", asked directly"
	}
	if o.Error != "" {
		text += ": " + o.Error
	}
	return text
}

// check says what no operation can be.
func (o Op) check() error {
	switch {
	case o.Kind != Insert && o.Kind != Read && o.Kind != Write && o.Kind != CAS && o.Kind != Add:
		return fault.New(fault.Input, "there is no operation of the kind %q", o.Kind)
	case o.Outcome != Acknowledged && o.Outcome != Failed && o.Outcome != Unknown:
		return fault.New(fault.Input, "there is no outcome %q", o.Outcome)
	case (o.Kind == Insert) != (o.Key == ""):
		return fault.New(fault.Input, "an operation of the kind %q with the key %q", o.Kind, o.Key)
	case o.Invoked < 0 || o.Completed < o.Invoked:
		return fault.New(fault.Input, "an operation from %v to %v", o.Invoked, o.Completed)
	case o.Timeline < 0:
		return fault.New(fault.Input, "timeline %d", o.Timeline)
	}
	return nil
}
