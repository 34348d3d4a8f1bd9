// Package status is what a node says about itself: which step of its
// configuration is under way, since when, what it waits for, what went wrong,
// and how to get in.
//
// Report is the published record (docs/metadata.md describes its JSON). Tracker
// gathers it while steps run and hands every change to those who show it. The
// agent serves it on a socket, see Serve and Ask. It never holds a secret.
package status

import (
	"fmt"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// State is how far the node is.
type State string

const (
	Starting     State = "starting"     // the agent looks for metadata
	Converging   State = "converging"   // steps are under way
	Unconfigured State = "unconfigured" // everything is done that can be without metadata
	Ready        State = "ready"        // everything that was asked for is in effect
	Degraded     State = "degraded"     // the role is up; something that was asked for is not in effect
	Maintenance  State = "maintenance"  // as ready, but the node was asked to give up what others can do instead
	Failed       State = "failed"       // the role is not up
	Removed      State = "removed"      // it was taken out of its cluster and serves nothing
)

// StepState is how far a step is.
type StepState string

const (
	Pending StepState = "pending"
	Running StepState = "running"
	Done    StepState = "done"
	Broken  StepState = "failed"
)

// Format is the version of the report's layout; fields are only ever added.
const Format = 1

// Report is the node's account of itself.
type Report struct {
	Format     int            `json:"format"`
	State      State          `json:"state"`
	Since      time.Time      `json:"since"`                  // of State
	Start      string         `json:"start,omitempty"`        // the start of the machine, see node.Node.Start
	BootSecs   float64        `json:"boot_seconds,omitempty"` // from power-on to the first time the node was ready
	Role       string         `json:"role"`
	Summary    string         `json:"summary"`
	Version    string         `json:"version"`
	Trial      bool           `json:"trial"` // the version is on trial and not confirmed yet
	Hostname   string         `json:"hostname"`
	Datasource string         `json:"datasource,omitempty"`
	Addresses  []Address      `json:"addresses"`
	HostKeys   []HostKey      `json:"host_keys"`
	Logins     []string       `json:"logins"` // users that can get in over ssh
	Steps      []Step         `json:"steps"`
	Warnings   []node.Warning `json:"warnings"`
	Advice     []string       `json:"advice"`             // what a person can do now
	Versions   []Version      `json:"versions,omitempty"` // of the image, that the node has
	Reset      string         `json:"reset,omitempty"`    // the factory reset that was done at this boot: system or data
	// Maintenance is since when and by whose wish the node is in maintenance, whatever
	// its state is otherwise; nil if it is not.
	Maintenance *node.Maintenance `json:"maintenance,omitempty"`
	Cluster     *Cluster          `json:"cluster,omitempty"` // nil on a node that stands alone
}

// Address is one address of the node.
type Address struct {
	Interface string `json:"interface"`
	Address   string `json:"address"` // with prefix length
}

// HostKey is one of the node's ssh host keys.
type HostKey struct {
	Type        string `json:"type"`
	Fingerprint string `json:"fingerprint"` // SHA256:…
}

// Step is one step of the configuration.
type Step struct {
	Name       string    `json:"name"`
	State      StepState `json:"state"`
	Since      time.Time `json:"since"`
	WaitingFor string    `json:"waiting_for,omitempty"` // why it waits: a clause that nothing is put before
	Error      string    `json:"error,omitempty"`
	Changed    []string  `json:"changed"` // what it changed in this round
}

// Clone is a copy that shares nothing with r.
func (r Report) Clone() Report {
	r.Addresses = append([]Address{}, r.Addresses...)
	r.HostKeys = append([]HostKey{}, r.HostKeys...)
	r.Logins = append([]string{}, r.Logins...)
	r.Warnings = append([]node.Warning{}, r.Warnings...)
	r.Advice = append([]string{}, r.Advice...)
	r.Versions = append([]Version(nil), r.Versions...)
	steps := make([]Step, len(r.Steps))
	for i, s := range r.Steps {
		s.Changed = append([]string{}, s.Changed...)
		steps[i] = s
	}
	r.Steps = steps
	r.Cluster = r.Cluster.Clone()
	if r.Maintenance != nil {
		m := *r.Maintenance
		r.Maintenance = &m
	}
	return r
}

// ExitCode is the exit status of `firstboot status` for a state.
func (s State) ExitCode() int {
	switch s {
	case Ready, Maintenance:
		return 0
	case Degraded:
		return 3
	case Starting, Converging:
		return 4
	case Unconfigured, Removed:
		return 5
	}
	return 6
}

// Settled reports whether the state stays until something new happens.
func (s State) Settled() bool { return s != Starting && s != Converging }

// Up reports whether the role is up, and nothing of it under way.
func (s State) Up() bool { return s == Ready || s == Degraded || s == Maintenance }

// Took renders a duration as people read it.
func Took(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%d s", int(d.Seconds()))
	}
	return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
}
