// Package volume reads single files from the small file systems that carry
// seeds: ISO 9660 (ECMA-119, with the names of Rock Ridge IEEE P1282 or
// Joliet) and FAT12/16/32 (Microsoft "FAT: General Overview of On-Disk
// Format"). It reads from the block device and mounts nothing.
//
// A seed is written by anybody's tool and may be torn, so this reader is made
// for that: every size is checked before memory is taken for it, every chain
// is bounded, and bytes that the device does not have are an error, never
// zeros. (That is why it does not use go-diskfs, which writes our seeds: its
// FAT reader follows a cyclic cluster chain for ever and, like its ISO reader,
// takes a short read for success.)
package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// MaxFile is the largest file that ReadFile returns.
const MaxFile = 16 << 20

// maxDir bounds what is read of one directory. A seed's has a dozen entries.
const maxDir = 4 << 20

// ErrUnknown says that a device holds neither ISO 9660 nor FAT.
var ErrUnknown = errors.New("neither an ISO 9660 nor a FAT file system")

// Volume is a file system on a device.
type Volume struct {
	Type  string // iso9660 or vfat
	Label string // as the file system has it, without padding
	fsys  filesystem
}

// filesystem is what the two formats have in common.
type filesystem interface {
	root() entry
	list(dir entry) ([]entry, error)
	read(file entry) ([]byte, error)
}

// entry is a file or directory.
type entry struct {
	names []string // all names that it can be found by
	dir   bool
	start uint32 // first block or cluster
	size  int64

	scattered bool // not in one piece: cannot be read
}

// Open recognises the file system of a device and reads its label.
func Open(r io.ReaderAt) (*Volume, error) {
	v, err := openISO(r)
	if errors.Is(err, ErrUnknown) {
		v, err = openFAT(r)
	}
	return v, err
}

// ReadFile returns the content of a file. The path has slashes and no slash at
// its begin. Case is ignored, as FAT and plain ISO 9660 do not keep it. A file
// that is not there gives an error that is fs.ErrNotExist.
func (v *Volume) ReadFile(path string) ([]byte, error) {
	at := v.fsys.root()
	for _, part := range strings.Split(path, "/") {
		if !at.dir {
			return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		entries, err := v.fsys.list(at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		found := false
		for _, e := range entries {
			if e.is(part) {
				at, found = e, true
				break
			}
		}
		if !found {
			return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
	}
	switch {
	case at.dir:
		return nil, fmt.Errorf("%s: is a directory", path)
	case at.size > MaxFile:
		return nil, fmt.Errorf("%s: has %d bytes, more than the limit of %d", path, at.size, MaxFile)
	}
	data, err := v.fsys.read(at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// Names lists a directory ("" for the root), for messages.
func (v *Volume) Names(path string) ([]string, error) {
	at := v.fsys.root()
	if path != "" {
		return nil, errors.New("only the root can be listed")
	}
	entries, err := v.fsys.list(at)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.names[0])
	}
	return out, nil
}

func (e entry) is(name string) bool {
	for _, n := range e.names {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return false
}

// readFull fills b from the device. Bytes that are not there are an error.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("the medium ends at byte %d, before byte %d that belongs to it: it is truncated: %w", off+int64(n), off+int64(len(b)), io.ErrUnexpectedEOF)
	}
	return err
}
