package steps

import (
	"os"
	"syscall"
)

// allocate gives a file all the room that it is to take: a swap file has no holes.
func allocate(f *os.File, size int64) error { return syscall.Fallocate(int(f.Fd()), 0, 0, size) }
