package nbd

import (
	"os"

	"golang.org/x/sys/unix"
)

// punchHole frees a range of a file, which then reads as zeros; EOPNOTSUPP if the file system cannot.
func punchHole(f *os.File, off, length int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
}
