// Package bootpart changes the boot partition of a running node in such an order
// that a power cut at any moment leaves every file that stood there whole, and a new
// one whole, or not there, or shorter than it is going to be.
//
// In goes the partition as a Device; out come files that are appended to, renamed
// and removed. The file system is FAT32 (Microsoft's "FAT32 File System Specification"
// 1.03), which has no journal: what the kernel's driver writes back reaches the disk in
// any order, so after a power cut a directory entry may lead to clusters that the
// table calls free, which the next file then takes as well. That is why this package
// writes the partition itself, past the file system that is mounted read-only. The order is always:
//
//	content → table entries of a new chain → the link to it → the directory entry
//
// and backwards for removal, with a flush between any two. What a power cut leaves is
// then nothing but clusters and pieces of long names that belong to nobody. Open sees
// them, and the first change takes them back.
//
// A rename writes the new entry and then takes the old one away; between the two,
// both lead to the same clusters. Files below Staging are unfinished by definition, so
// the one there is the one that goes.
//
// The kernel's mount stays: it reads blocks through the same cache (the block device's), its
// files do not move, and grubenv alone is written through it. It does not see files that are
// new until the next boot, hence all looking is done here too.
package bootpart

import "github.com/slipwayhq/slipway/internal/fault"

// Staging is the directory of files that are not complete or not taken into use yet.
const Staging = "upload"

// Device is the partition.
type Device interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync returns once all that was written is on the disk.
	Sync() error
}

func bad(format string, args ...any) *fault.Error {
	return fault.New(fault.Integrity, "boot partition: "+format, args...)
}
