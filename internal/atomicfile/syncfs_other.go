//go:build !linux

package atomicfile

import "golang.org/x/sys/unix"

// SyncFS flushes the file system that dir is on, and here all others with it.
func SyncFS(dir string) error { return unix.Sync() }
