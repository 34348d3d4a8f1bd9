//go:build !linux

package deb

import (
	"io"
	"os"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Root is a directory that packages are unpacked into; only Linux can.
type Root struct{}

// OpenRoot says that unpacking needs Linux.
func OpenRoot(string) (*Root, error) {
	return nil, fault.New(fault.Missing, "unpacking packages needs Linux").
		WithMend("build the layers on Linux, or pull them from a registry; assembling images works here")
}

func (r *Root) Close() error                                 { return nil }
func (r *Root) Open(string) (*os.File, error)                { return nil, os.ErrInvalid }
func (r *Root) ReadFile(string) ([]byte, error)              { return nil, os.ErrInvalid }
func (r *Root) WriteFile(string, uint32, []byte) error       { return os.ErrInvalid }
func (r *Root) Symlink(string, string) error                 { return os.ErrInvalid }
func (r *Root) MkdirAll(string) error                        { return os.ErrInvalid }
func (r *Root) Remove(string) error                          { return os.ErrInvalid }
func (r *Root) RemoveMatching(string, string) error          { return os.ErrInvalid }
func (r *Root) SetOwner(string, uint32, uint32) error        { return os.ErrInvalid }
func (r *Root) Exists(string) bool                           { return false }
func (r *Root) SetDirs([]*Contents) error                    { return os.ErrInvalid }
func (r *Root) Unpack(io.Reader, Options) (*Contents, error) { return nil, os.ErrInvalid }
