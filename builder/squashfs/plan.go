package squashfs

import (
	"math"
	"path"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// inode is a file of the image; hard links are several names of one.
type inode struct {
	entry    *tree.Entry
	number   uint32
	links    uint32
	parent   *inode // of a directory
	children []name // of a directory, in byte order
	xattr    uint32 // index of its set of extended attributes
	data     data   // of a regular file, once packed
	ref      uint64 // where it stands in the inode table, once written
	sameAs   *inode // the file with the same content that was packed before, or nil
	written  bool
}

// name is an entry of a directory.
type name struct {
	name string
	to   *inode
}

// data says where the content of a regular file is.
type data struct {
	start      int64
	blocks     []uint32 // size words; 0 is a block of zeros that is not stored
	fragment   uint32
	fragOffset uint32
	sparse     int64 // bytes that are not stored because they are zero
}

// plan makes inodes of the entries and numbers them: siblings consecutively, so
// that a directory listing, which holds numbers as 16-bit differences, rarely
// needs a new header. The result is in the order in which data is packed.
func plan(t *tree.Tree) (root *inode, inodes []*inode, err error) {
	byPath := make(map[string]*inode, t.Len())
	sorted := t.Sorted()
	for _, e := range sorted {
		if e.LinkTo != "" {
			continue
		}
		if _, ok := kindType[e.Kind]; !ok {
			return nil, nil, fault.New(fault.Internal, "%s: unknown kind of file %d", e.Path, e.Kind)
		}
		if e.Kind == tree.Symlink && (e.Target == "" || len(e.Target) > math.MaxUint16) {
			return nil, nil, fault.New(fault.Input, "%s: a symbolic link's target must have 1 to %d bytes", e.Path, math.MaxUint16)
		}
		n := &inode{entry: e, xattr: noXattr, data: data{fragment: noFragment}}
		if e.Kind == tree.Dir {
			n.links = 2
		}
		byPath[e.Path] = n
		inodes = append(inodes, n)
	}
	for _, e := range sorted {
		if e.Path == "." {
			continue
		}
		n := byPath[e.Path]
		if e.LinkTo != "" {
			if n, err = linkTarget(t, byPath, e); err != nil {
				return nil, nil, err
			}
		}
		base := path.Base(e.Path)
		if len(base) > maxNameLen {
			return nil, nil, fault.New(fault.Input, "%s: the name has %d bytes, squashfs holds %d", e.Path, len(base), maxNameLen)
		}
		dir := byPath[path.Dir(e.Path)]
		dir.children = append(dir.children, name{base, n})
		if e.Kind == tree.Dir {
			n.parent = dir
			dir.links++
		} else {
			n.links++
		}
	}
	root = byPath["."]
	number(root, inodes)
	return root, inodes, nil
}

// linkTarget resolves a hard link, which may name another hard link.
func linkTarget(t *tree.Tree, byPath map[string]*inode, e *tree.Entry) (*inode, error) {
	to := e
	for hops := 0; to != nil && to.LinkTo != ""; hops++ {
		if hops > 40 {
			return nil, fault.New(fault.Input, "%s: hard links that lead in a circle", e.Path)
		}
		to = t.Get(to.LinkTo)
	}
	if to == nil || to.Kind == tree.Dir {
		return nil, fault.New(fault.Input, "%s: hard link to %s, which is not a file of the tree", e.Path, e.LinkTo)
	}
	return byPath[to.Path], nil
}

// number gives the root 1 and then, directory by directory, its files in order.
func number(root *inode, inodes []*inode) {
	root.number = 1
	next := uint32(2)
	for _, dir := range inodes {
		for _, c := range dir.children {
			if c.to.number == 0 {
				c.to.number = next
				next++
			}
		}
	}
}

// ids is the table of user and group numbers; inodes hold indices into it.
type ids struct {
	index map[uint32]uint16
	list  []byte
}

func collectIDs(inodes []*inode) (*ids, error) {
	t := &ids{index: map[uint32]uint16{}}
	for _, n := range inodes {
		for _, id := range [2]uint32{n.entry.UID, n.entry.GID} {
			if _, ok := t.index[id]; ok {
				continue
			}
			if len(t.index) == math.MaxUint16 {
				return nil, fault.New(fault.Input, "more than %d different owners and groups", math.MaxUint16)
			}
			t.index[id] = uint16(len(t.index))
			t.list = append(t.list, byte(id), byte(id>>8), byte(id>>16), byte(id>>24))
		}
	}
	return t, nil
}
