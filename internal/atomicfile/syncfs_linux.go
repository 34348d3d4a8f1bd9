package atomicfile

import (
	"os"

	"golang.org/x/sys/unix"
)

// SyncFS flushes the file system that dir is on: one flush for many files.
func SyncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
