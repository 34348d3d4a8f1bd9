// Package fault classifies errors, so that the command can turn what went wrong
// into an exit status that scripts rely on.
//
// An error gets its class where it is first understood and keeps it through
// any wrapping with %w. The mapping from class to exit status is ExitCode and
// nowhere else.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Class says whose turn it is to act on an error.
type Class int

const (
	Internal  Class = iota // a defect in slipway, or an error nobody classified
	Usage                  // the command line is wrong
	Input                  // a file that the user wrote is wrong (profile, lock, overlay, topology)
	Missing                // the host lacks something: a kernel feature, a tool
	Network                // a mirror or registry did not answer, or refused
	Integrity              // a signature, hash or size is not what it must be
	Space                  // a disk is full or a quota is reached
	Drift                  // a check found a difference; nothing is broken
	Failed                 // what was asked for ran and did not succeed (maintainer script, boot test)
)

var names = map[Class]string{
	Internal: "internal", Usage: "usage", Input: "input", Missing: "missing", Network: "network",
	Integrity: "integrity", Space: "space", Drift: "drift", Failed: "failed",
}

// String is the class's name in JSON output.
func (c Class) String() string { return names[c] }

// Named is the class of a name, for errors that come from another machine; a name
// that this version does not know counts as Failed.
func Named(name string) Class {
	for c, n := range names {
		if n == name {
			return c
		}
	}
	return Failed
}

// Error carries a class, what went wrong, and how to mend it.
type Error struct {
	Class Class
	Err   error
	// Mend is one imperative sentence that tells the user what to do; it may be empty.
	Mend string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// New makes a classed error from a format (which may hold %w).
func New(c Class, format string, args ...any) *Error {
	return &Error{Class: c, Err: fmt.Errorf(format, args...)}
}

// WithMend adds the sentence that tells the user what to do.
func (e *Error) WithMend(format string, args ...any) *Error {
	e.Mend = fmt.Sprintf(format, args...)
	return e
}

// Of returns the class of err: the outermost one that was given.
func Of(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.Class
	}
	return Internal
}

// Mend returns the advice that err carries, or "".
func Mend(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Mend != "" {
			return e.Mend
		}
		err = e.Err
	}
	return ""
}

// ExitCode maps an error to the command's exit status. 130 is what a shell
// reports for Ctrl-C.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return 130
	}
	return map[Class]int{
		Internal: 1, Usage: 2, Input: 3, Missing: 4, Network: 5,
		Integrity: 6, Space: 7, Drift: 8, Failed: 9,
	}[Of(err)]
}
