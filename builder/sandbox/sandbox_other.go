//go:build !linux || !amd64

package sandbox

import (
	"context"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Session is a running sandbox; this system cannot have one.
type Session struct{}

// Start says that packages can be installed on Linux only.
func Start(context.Context, Config) (*Session, error) {
	return nil, fault.New(fault.Missing, "installing packages needs the namespaces of Linux on amd64").
		WithMend("build the layers on such a machine, or pull them from a registry; assembling images works here")
}

func (s *Session) Root() string                     { return "" }
func (s *Session) Close() error                     { return nil }
func (s *Session) Run(context.Context, Cmd) error   { return nil }
func (s *Session) Shell(context.Context, Cmd) error { return nil }

func first() int { return 1 }
