package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipwayhq/slipway/builder/ownership"
	"github.com/slipwayhq/slipway/builder/tree"
	"golang.org/x/sys/unix"
)

// FromDir reads a layer's directory: a tree with true owners, modes,
// capabilities, devices and hard links. It is the same whoever reads it.
// Content is opened when it is asked for.
func FromDir(dir string, o FromDirOptions) (*tree.Tree, error) {
	t := tree.New()
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if rel != "." && o.Skip != nil && o.Skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		e, err := entry(name, rel, &st, o)
		if err != nil {
			return err
		}
		if e == nil {
			return nil
		}
		if e.Kind == tree.Regular && st.Nlink > 1 {
			inode := [2]uint64{st.Dev, st.Ino}
			if first, ok := links[inode]; ok {
				e.LinkTo, e.Open = first, nil
			} else {
				links[inode] = rel
			}
		}
		return t.Put(e)
	})
	if err != nil {
		return nil, fmt.Errorf("reading layer %s: %w", dir, err)
	}
	return t, nil
}

// entry describes one file; nil is a file that a layer does not carry.
func entry(name, rel string, st *unix.Stat_t, o FromDirOptions) (*tree.Entry, error) {
	e := &tree.Entry{Path: rel, Perm: st.Mode & 0o7777, MTime: min(st.Mtim.Sec, o.Date)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Kind, e.MTime = tree.Dir, o.Date
	case unix.S_IFREG:
		e.Kind, e.Size = tree.Regular, st.Size
		e.Open = func() (io.ReadCloser, error) { return os.Open(name) }
	case unix.S_IFLNK:
		target, err := os.Readlink(name)
		if err != nil {
			return nil, err
		}
		e.Kind, e.Target, e.Perm = tree.Symlink, target, 0o777
		return e, nil // never with an attribute
	case unix.S_IFIFO:
		e.Kind = tree.Fifo
		return e, nil
	case unix.S_IFCHR, unix.S_IFBLK:
		if o.Upper && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			return &tree.Entry{Path: rel, Kind: tree.Char, MTime: o.Date}, nil
		}
		return nil, fmt.Errorf("%s is a device, which a sandbox cannot have made", name)
	default: // a socket is of no use without the process that listens
		return nil, nil
	}
	if rel == "." {
		e.Perm = 0o755
	}
	return e, attributes(name, e, o)
}

// attributes reads what stands in extended attributes.
func attributes(name string, e *tree.Entry, o FromDirOptions) error {
	buffer := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buffer)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	for _, attr := range strings.Split(strings.TrimRight(string(buffer[:n]), "\x00"), "\x00") {
		value := make([]byte, 1024)
		switch attr {
		case ownership.Owner, ownership.Caps, ownership.Mode, ownership.Node, "user.overlay.opaque":
			size, err := unix.Lgetxattr(name, attr, value)
			if err != nil {
				return &os.PathError{Op: "getxattr " + attr, Path: name, Err: err}
			}
			if err := apply(e, attr, value[:size], o); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// apply changes an entry to what an attribute says.
func apply(e *tree.Entry, attr string, value []byte, o FromDirOptions) (err error) {
	mark := func(name string, value []byte) {
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[name] = value
	}
	switch attr {
	case ownership.Owner:
		e.UID, e.GID, err = ownership.ParseOwner(value)
	case ownership.Mode:
		e.Perm, err = ownership.ParseMode(value)
	case ownership.Caps:
		mark("security.capability", value)
	case ownership.Node:
		var block bool
		block, e.Major, e.Minor, err = ownership.ParseNode(value)
		e.Kind, e.Size, e.Open = tree.Char, 0, nil
		if block {
			e.Kind = tree.Block
		}
	case "user.overlay.opaque":
		if o.Upper && string(value) == "y" {
			mark("trusted.overlay.opaque", []byte("y"))
		}
	}
	return err
}
