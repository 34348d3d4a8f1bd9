//go:build !linux

package layer

import (
	"context"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

func unsupported() error {
	return fault.New(fault.Missing, "making layers needs the namespaces of Linux").
		WithMend("build the layers on Linux, or pull them from a registry; assembling images works here")
}

// Spool holds data archives that were decompressed ahead of their use.
type Spool struct{}

// NewSpool says that making layers needs Linux.
func NewSpool(string) (*Spool, error) { return nil, unsupported() }

// Close does nothing.
func (s *Spool) Close() error { return nil }

// Build says that making layers needs Linux.
func Build(context.Context, Input) (*Result, error) { return nil, unsupported() }

// FromDir says that reading layers needs Linux.
func FromDir(string, FromDirOptions) (*tree.Tree, error) { return nil, unsupported() }
