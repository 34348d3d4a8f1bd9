// Package actions is what an administrator can have the agent of a node do.
//
// In go requests of administrators, whose certificates package peers has checked;
// out come events as the action goes on, its result or why there is none, and two
// records in the node's audit log. An Action is a name and a function; each stands
// in the package of what it changes, and the agent lists them all.
//
//	POST /v1/actions/NAME   arguments as JSON, at most 64 KiB. 200 and a line of JSON
//	                        (application/x-ndjson) for each Event; the last one is the
//	                        outcome. 404 names the actions that there are; 409: another
//	                        one is under way on this node
//	POST /v1/looks/NAME     the same for what changes nothing: it takes the right to read, is
//	                        not in the log, and does not wait for an action that is under way
//	GET  /v1/audit?n=100    the newest records of the log, the newest last, as JSON
//
// To add one:
//
//	// Rotate gives this node's service another key.
//	var Rotate = actions.Action{Name: "rotate", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
//		var a RotateArgs
//		if err := actions.Decode(args, &a); err != nil {
//			return nil, err
//		}
//		if already(e.Node, a) {
//			return RotateResult{}, nil // an action may be run again at any time
//		}
//		e.Say("writing the key")
//		…
//	}}
//
// and put it into the list in firstboot/agent/actions.go. An action
//
//   - may be run again at any time, after an interruption at any point, and does only
//     what is still to be done;
//   - ends when ctx does: that is when the administrator has gone away, or the agent
//     ends. What must not be left half done is written whole (package atomicfile);
//   - says no with a fault.Error, whose class and mend reach the administrator;
//   - puts no secret into what it says, into its result or into an error, and sets
//     Secret if its arguments hold any.
package actions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// MaxArgs is how many bytes the arguments of an action may have.
const MaxArgs = 64 << 10

// Action is something that an administrator can have a node do.
type Action struct {
	Name string
	Run  func(ctx context.Context, e *Env, args json.RawMessage) (result any, err error)
	// Secret keeps the arguments out of the audit log.
	Secret bool
}

// Env is where an action runs.
type Env struct {
	// Node is the node as a member of its cluster. What its Report is told goes where
	// Say goes, so that an action can apply a step. Its Kept and Local belong to the
	// steps, which run beside: an action keeps what it has to keep in a file of its own.
	Node *node.Node
	// Again begins a new round of the agent's steps.
	Again func(why string)
	// By is who asks.
	By Caller

	say func(string)
}

// Say tells the administrator, and the node's journal, how far the action is.
func (e *Env) Say(format string, args ...any) { e.say(fmt.Sprintf(format, args...)) }

// NewEnv is where an action runs that somebody asks for; say takes what it says.
func NewEnv(n node.Node, by Caller, again func(why string), say func(string)) *Env {
	n.Report = reporter{say}
	return &Env{Node: &n, Again: again, By: by, say: say}
}

// Caller is who asks for something to be done.
type Caller struct {
	Name   string // the certificate's common name
	Serial string // the certificate's, hexadecimal
	From   string // address and port
}

// Decode reads an action's arguments. A field that this version does not know is an
// error: to do only half of what was asked for would be worse.
func Decode(args json.RawMessage, into any) error {
	d := json.NewDecoder(bytes.NewReader(args))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fault.New(fault.Input, "the action's arguments cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.Input, "something stands behind the action's arguments")
	}
	return nil
}

// Server runs actions, one at a time, and keeps the log.
type Server struct {
	// Log is the audit log.
	Log *Log
	// Again begins a new round of the agent's steps.
	Again func(why string)
	// Line tells whoever watches the node.
	Line func(text string)
	// After is told that an action has ended, whatever became of it.
	After func()
	// Actions are those that this version has, Looks those of them that change nothing.
	Actions, Looks []Action
	// Alive is how often it shows that it is there; 0 is keepAlive.
	Alive time.Duration

	mu  sync.Mutex
	now *underWay
}

// underWay is the action that runs now.
type underWay struct {
	name  string
	by    Caller
	since time.Time
}

// find is the action of a name, or why there is none.
func find(list []Action, name, node string) (Action, error) {
	names := []string{}
	for _, a := range list {
		if a.Name == name {
			return a, nil
		}
		names = append(names, a.Name)
	}
	slices.Sort(names)
	return Action{}, fault.New(fault.Missing, "the image of %s has no action %q; it has: %s", node, name, strings.Join(names, ", ")).
		WithMend("upgrade the node to an image that has it")
}

// take has an action be the one that runs; it returns the one that does if that
// is another.
func (s *Server) take(next underWay) (other *underWay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != nil {
		return s.now
	}
	s.now = &next
	return nil
}

func (s *Server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = nil
}

// reporter hands what steps say about themselves to the administrator, so that an
// action can apply a step.
type reporter struct{ say func(string) }

func (r reporter) Waiting(why string) {
	if why != "" {
		r.say(why)
	}
}
func (r reporter) Changed(what string)    { r.say(what) }
func (r reporter) Warn(w node.Warning)    { r.say(w.String()) }
func (r reporter) Say(line string)        { r.say(line) }
func (r reporter) HostKey(string, string) {}
func (r reporter) Login(string)           {}
