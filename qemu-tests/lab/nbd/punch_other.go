//go:build !linux

package nbd

import (
	"os"

	"golang.org/x/sys/unix"
)

// punchHole says that it cannot.
func punchHole(*os.File, int64, int64) error { return unix.EOPNOTSUPP }
