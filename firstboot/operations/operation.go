// Package operations is what an administrator does to a running cluster, from
// where the store is. Each operation is one file.
//
// In goes a Cluster and what is asked for; an operation looks at the cluster and
// works out its Steps. What comes out is a Result: what was done, and whether the
// cluster was seen to be as it was meant to be afterwards, or what is left to do.
// A Runner shows the steps, asks, does them and looks again.
//
// Nothing is written down on the way. What is left is worked out from the cluster's
// state each time, so that after an interruption the same command goes on: a step
// says by itself whether it is done already. To add an operation:
//
//	// Restart restarts PostgreSQL on a node.
//	func Restart(c *Cluster, node string) Prepare {
//		return func(ctx context.Context, now overview.Overview) (*Operation, error) {
//			if why := …; why != "" {
//				return nil, fault.New(fault.Failed, "%s", why).WithMend("…") // refused, with the reason
//			}
//			return &Operation{
//				Name: "restart", Title: "restart PostgreSQL on " + node,
//				Steps: []Step{{
//					What: "restart PostgreSQL on " + node,
//					Done: !wantsRestart(now, node),
//					Do: func(ctx context.Context, say func(string)) error {
//						return c.Act(ctx, node, "restart", database.RestartArgs{}, nil, say)
//					},
//				}},
//				Check: func(now overview.Overview) []string { … what is not yet as it should be … },
//			}, nil
//		}
//	}
//
// and a command for it in cmd/slipway, see switchover.go there. What the node has to
// do is an action (package actions).
package operations

import (
	"context"
	"encoding/json"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
)

// Prepare works an operation out from the cluster's state. Its error is why the
// operation is refused.
type Prepare func(ctx context.Context, now overview.Overview) (*Operation, error)

// Operation is what is going to be done.
type Operation struct {
	Name  string // of the command
	Title string // what it does, in a clause without a subject: "have a-db2 lead site a"
	// Warnings are what a person should know before agreeing.
	Warnings []string
	Steps    []Step
	// Check says what is not yet as the operation wants it; nothing when all is. It is
	// asked again and again until it is content or Patience has passed.
	Check func(now overview.Overview) []string
	// Lost says why the cluster will not become as wanted any more; nil as long as it may. An
	// operation without it is given up only when Patience has passed.
	Lost func(now overview.Overview) error
	// Patience is how long the cluster may take to be as wanted after the last step; 0
	// is roundLimit.
	Patience time.Duration
	// Word has to be typed by whoever agrees, where a plain yes would be too easy.
	Word string
	// Again is the command that goes on after an interruption, while steps are left, if that
	// is not simply the same one.
	Again string
}

// Step is one part of an operation.
type Step struct {
	What string // in a clause without a subject: "hand over from a-db1 to a-db2"
	// Done says that this is so already, going by the state that the operation was
	// worked out from.
	Done bool
	Do   func(ctx context.Context, say func(string)) error
}

// Outcome is how a step went.
type Outcome string

const (
	Already Outcome = "already" // it was so before
	Done    Outcome = "done"
	Failed  Outcome = "failed"
	Left    Outcome = "left" // not done
)

// Result is what became of an operation.
type Result struct {
	Operation string       `json:"operation"`
	Cluster   string       `json:"cluster"`
	Title     string       `json:"title"`
	Steps     []StepResult `json:"steps"`
	DryRun    bool         `json:"dry_run,omitempty"`
	// Verified says that the cluster was seen to be as the operation wants it.
	Verified bool `json:"verified"`
	// Left is what is not yet as it should be, in words.
	Left []string `json:"left"`
	// Seconds is how long it took, from the first step on.
	Seconds float64 `json:"seconds"`
}

// StepResult is what became of a step.
type StepResult struct {
	What    string  `json:"what"`
	Outcome Outcome `json:"outcome"`
	Error   string  `json:"error,omitempty"`
}

// JSON is the result as the command prints it.
func (r *Result) JSON() ([]byte, error) { return json.MarshalIndent(r, "", "  ") }
