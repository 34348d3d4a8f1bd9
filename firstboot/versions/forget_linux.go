package versions

import (
	"os"

	"golang.org/x/sys/unix"
)

// forget has the kernel drop what it keeps of a file in memory.
func forget(f *os.File) { unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
