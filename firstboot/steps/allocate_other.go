//go:build !linux

package steps

import (
	"errors"
	"os"
)

// allocate says that it cannot: nodes run Linux.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }
