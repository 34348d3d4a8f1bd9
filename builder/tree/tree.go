// Package tree models a file tree as it will stand in an appliance: paths,
// modes, numeric owners, times, extended attributes and content, all in memory
// and none of it dependent on who runs the build. It is what layers, initramfs
// archives and configuration are made from.
//
// Content is not held: a regular file has an Open function that yields its
// bytes when a writer asks for them.
package tree

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// Kind is the type of an entry.
type Kind uint8

const (
	Dir Kind = iota + 1
	Regular
	Symlink
	Char
	Block
	Fifo
	Socket
)

// Entry is one file of a tree.
type Entry struct {
	// Path is slash-separated, clean, relative to the root, without a leading
	// slash; the root itself is ".".
	Path string
	Kind Kind
	// Perm holds the permission bits with setuid, setgid and sticky as in
	// st_mode (0o7777).
	Perm     uint32
	UID, GID uint32
	// MTime is in seconds since the Unix epoch.
	MTime int64
	// Target is what a symbolic link points to.
	Target string
	// Major and Minor name a device.
	Major, Minor uint32
	// Xattrs are extended attributes by full name, such as "security.capability".
	Xattrs map[string][]byte
	// Size is the number of bytes of a regular file.
	Size int64
	// Open yields the content of a regular file. Nil means an empty file.
	Open func() (io.ReadCloser, error)
	// LinkTo names the path of the entry that this one is a hard link of; an
	// entry with LinkTo has no other content of its own.
	LinkTo string
}

// Tree is a set of entries by path. The zero value is not usable; call New.
type Tree struct {
	entries map[string]*Entry
}

// New returns a tree that holds only a root directory, 0755 and owned by root.
func New() *Tree {
	t := &Tree{entries: map[string]*Entry{}}
	t.entries["."] = &Entry{Path: ".", Kind: Dir, Perm: 0o755}
	return t
}

// Clean turns any spelling of a path inside the tree ("/etc/", "./etc") into
// the form that Entry.Path has. It refuses paths that leave the tree.
func Clean(p string) (string, error) {
	c := path.Clean("/" + p)[1:]
	if c == "" {
		return ".", nil
	}
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			return "", fmt.Errorf("path %q leaves the tree", p)
		}
	}
	if strings.IndexByte(c, 0) >= 0 {
		return "", fmt.Errorf("path %q holds a NUL byte", p)
	}
	return c, nil
}

// Put adds e, or replaces the entry at its path. Directories above it that do
// not exist yet are made as 0755 root with e's time. A directory that replaces a
// directory keeps the children. Any other replacement of a directory drops them.
func (t *Tree) Put(e *Entry) error {
	p, err := Clean(e.Path)
	if err != nil {
		return err
	}
	e.Path = p
	if p != "." {
		for dir := path.Dir(p); ; dir = path.Dir(dir) {
			parent, ok := t.entries[dir]
			if ok && parent.Kind != Dir {
				return fmt.Errorf("%s: %s is not a directory", p, dir)
			}
			if !ok {
				t.entries[dir] = &Entry{Path: dir, Kind: Dir, Perm: 0o755, MTime: e.MTime}
			}
			if dir == "." {
				break
			}
		}
	}
	if old, ok := t.entries[p]; ok && old.Kind == Dir && e.Kind != Dir {
		t.Remove(p)
	}
	t.entries[p] = e
	return nil
}

// PutFile adds a regular file with the given content, owned by root.
func (t *Tree) PutFile(p string, perm uint32, mtime int64, content []byte) error {
	return t.Put(&Entry{
		Path: p, Kind: Regular, Perm: perm, MTime: mtime, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	})
}

// Remove deletes the entry at p and all below it.
func (t *Tree) Remove(p string) {
	delete(t.entries, p)
	for q := range t.entries {
		if strings.HasPrefix(q, p+"/") {
			delete(t.entries, q)
		}
	}
}

// Get returns the entry at p (any spelling), or nil.
func (t *Tree) Get(p string) *Entry {
	c, err := Clean(p)
	if err != nil {
		return nil
	}
	return t.entries[c]
}

// Len is the number of entries, the root included.
func (t *Tree) Len() int { return len(t.entries) }

// Sorted returns all entries so that a directory stands before what is in it
// and siblings are in byte order: the root, then depth first.
func (t *Tree) Sorted() []*Entry {
	out := make([]*Entry, 0, len(t.entries))
	for _, e := range t.entries {
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool { return less(out[i].Path, out[j].Path) })
	return out
}

// less orders paths part by part, so that "a/b" stands before "a-b".
func less(a, b string) bool {
	if a == "." || b == "." {
		return a == "." && b != "."
	}
	for {
		ai, bi := strings.IndexByte(a, '/'), strings.IndexByte(b, '/')
		ah, bh := a, b
		if ai >= 0 {
			ah = a[:ai]
		}
		if bi >= 0 {
			bh = b[:bi]
		}
		if ah != bh {
			return ah < bh
		}
		if ai < 0 || bi < 0 {
			return ai < 0 && bi >= 0
		}
		a, b = a[ai+1:], b[bi+1:]
	}
}

// ReadFile returns the content of the regular file at p, following hard links.
func (t *Tree) ReadFile(p string) ([]byte, error) {
	e := t.Get(p)
	if e != nil && e.LinkTo != "" {
		e = t.Get(e.LinkTo)
	}
	if e == nil {
		return nil, fmt.Errorf("%s: %w", p, fs.ErrNotExist)
	}
	if e.Kind != Regular {
		return nil, fmt.Errorf("%s is not a regular file", p)
	}
	if e.Open == nil {
		return nil, nil
	}
	r, err := e.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// ClampTimes sets every time later than limit (Unix seconds) to limit, as
// SOURCE_DATE_EPOCH asks (reproducible-builds.org, "SOURCE_DATE_EPOCH").
func (t *Tree) ClampTimes(limit int64) {
	for _, e := range t.entries {
		if e.MTime > limit {
			e.MTime = limit
		}
	}
}
