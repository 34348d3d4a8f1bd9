package squashfs

import (
	"io"
	"path"
	"strings"

	"github.com/slipwayhq/slipway/builder/tree"
)

var typeKind = map[uint16]tree.Kind{
	typeDir: tree.Dir, typeFile: tree.Regular, typeSymlink: tree.Symlink, typeBlock: tree.Block,
	typeChar: tree.Char, typeFifo: tree.Fifo, typeSocket: tree.Socket,
}

// walker turns inodes into entries of a tree.
type walker struct {
	s      *Reader
	t      *tree.Tree
	first  map[uint64]string // path under which an inode was met first
	blocks int
	xattrs int // bytes of extended attributes
}

// listing says where a directory's entries are.
type listing struct {
	start  uint32
	offset uint16
	size   int64 // in bytes, without the three for "." and ".."
}

// Tree reads all of the image but the content of its files, which is read when
// it is opened. It is not to be called twice at the same time.
func (s *Reader) Tree() (*tree.Tree, error) {
	w := &walker{s: s, t: tree.New(), first: map[uint64]string{s.sb.RootInode: "."}}
	root, list, err := w.inode(".", s.sb.RootInode)
	if err != nil {
		return nil, err
	}
	if root.Kind != tree.Dir {
		return nil, bad("the root is not a directory")
	}
	if err := w.t.Put(root); err != nil {
		return nil, err
	}
	return w.t, w.dir(root.Path, list)
}

// dir adds what is in a directory, and then what is in its subdirectories.
func (w *walker) dir(dir string, l listing) error {
	c := w.s.at(w.s.sb.DirTable, uint64(l.start), l.offset)
	if l.size == 0 {
		return nil
	}
	type sub struct {
		path string
		list listing
	}
	var subs []sub
	for left := l.size; left > 0 && c.err == nil; {
		count, start := c.u32(), c.u32()
		c.u32() // number of the first inode; the entries' references say enough
		left -= 12
		if count >= maxDirEntries {
			return bad("/%s: a header for %d entries", dir, count+1)
		}
		for range count + 1 {
			offset := c.u16()
			c.u32() // difference of inode numbers, type
			n := int(c.u16()) + 1
			name := string(c.bytes(n))
			left -= int64(8 + n)
			if c.err != nil {
				return c.err
			}
			if n > maxNameLen || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				return bad("/%s: an entry with the name %q", dir, name)
			}
			p := path.Join(dir, name)
			e, list, err := w.add(p, uint64(start)<<16|uint64(offset))
			if err != nil {
				return err
			}
			if e.Kind == tree.Dir {
				subs = append(subs, sub{p, list})
			}
		}
	}
	if c.err != nil {
		return c.err
	}
	for _, d := range subs {
		if err := w.dir(d.path, d.list); err != nil {
			return err
		}
	}
	return nil
}

// add puts the file with the given reference at p, as a hard link if it has been met before.
func (w *walker) add(p string, ref uint64) (*tree.Entry, listing, error) {
	if len(p) > maxPathLen || w.t.Len() >= maxEntries {
		return nil, listing{}, bad("/%.100s: the path is too long, or there are too many files", p)
	}
	if w.t.Get(p) != nil {
		return nil, listing{}, bad("/%s is there twice", p)
	}
	e, list, err := w.inode(p, ref)
	if err != nil {
		return nil, list, err
	}
	if first, ok := w.first[ref]; ok {
		if e.Kind == tree.Dir { // would lead round in circles
			return nil, list, bad("/%s and /%s are the same directory", first, p)
		}
		e.LinkTo = first
		e.Open, e.Xattrs = nil, nil
	} else {
		w.first[ref] = p
	}
	return e, list, w.t.Put(e)
}

// inode reads one inode.
func (w *walker) inode(p string, ref uint64) (*tree.Entry, listing, error) {
	s := w.s
	c := s.at(s.sb.InodeTable, ref>>16, uint16(ref))
	kind, perm, uid, gid := c.u16(), c.u16(), int(c.u16()), int(c.u16())
	e := &tree.Entry{Path: p, Perm: uint32(perm) & 0o7777, MTime: int64(c.u32())}
	c.u32() // number
	long := kind > extended
	if long {
		kind -= extended
	}
	e.Kind = typeKind[kind]
	if c.err != nil {
		return nil, listing{}, c.err
	}
	if uid >= len(s.ids) || gid >= len(s.ids) {
		return nil, listing{}, bad("/%s: owner number %d or %d does not exist", p, uid, gid)
	}
	e.UID, e.GID = s.ids[uid], s.ids[gid]
	xattr := uint32(noXattr)
	var list listing
	switch e.Kind {
	case tree.Dir:
		list, xattr = readDirInode(c, long)
	case tree.Regular:
		var err error
		if xattr, err = w.readFileInode(c, e, long); err != nil {
			return nil, list, err
		}
	case tree.Symlink:
		c.u32() // links
		n := c.u32()
		if n == 0 || n > 1<<16 {
			return nil, list, bad("/%s: a symbolic link of %d bytes", p, n)
		}
		e.Target = string(c.bytes(int(n)))
		if long {
			xattr = c.u32()
		}
	case tree.Char, tree.Block:
		c.u32() // links
		e.Major, e.Minor = splitDevice(c.u32())
		if long {
			xattr = c.u32()
		}
	case tree.Fifo, tree.Socket:
		c.u32() // links
		if long {
			xattr = c.u32()
		}
	default:
		return nil, list, bad("/%s: inode of type %d", p, kind)
	}
	if c.err != nil {
		return nil, list, c.err
	}
	if xattr != noXattr {
		var err error
		if e.Xattrs, err = s.readXattrs(xattr); err != nil {
			return nil, list, bad("/%s: %w", p, err)
		}
		for name, value := range e.Xattrs {
			w.xattrs += len(name) + len(value)
		}
		if w.xattrs > maxXattrBytes {
			return nil, list, bad("/%s: more than %d bytes of extended attributes in all", p, maxXattrBytes)
		}
	}
	return e, list, nil
}

func readDirInode(c *cursor, long bool) (l listing, xattr uint32) {
	xattr = noXattr
	if long {
		c.u32() // links
		l.size = int64(c.u32())
		l.start = c.u32()
		c.bytes(6) // parent, number of index entries
		l.offset = c.u16()
		xattr = c.u32()
	} else {
		l.start = c.u32()
		c.u32() // links
		l.size = int64(c.u16())
		l.offset = c.u16()
	}
	l.size = max(l.size-3, 0)
	return l, xattr
}

func (w *walker) readFileInode(c *cursor, e *tree.Entry, long bool) (xattr uint32, err error) {
	f := &content{s: w.s}
	xattr = noXattr
	if long {
		f.start = c.u64()
		f.size = c.u64()
		c.bytes(12) // sparse bytes, links
		f.fragment = c.u32()
		f.offset = c.u32()
		xattr = c.u32()
	} else {
		f.start = uint64(c.u32())
		f.fragment = c.u32()
		f.offset = c.u32()
		f.size = uint64(c.u32())
	}
	if f.size > maxFileSize || f.start > w.s.sb.BytesUsed {
		return xattr, bad("/%s: %d bytes at byte %d", e.Path, f.size, f.start)
	}
	block := uint64(w.s.sb.BlockSize)
	n := f.size / block
	if f.size%block != 0 && f.fragment == noFragment {
		n++
	}
	if w.blocks += int(min(n, maxBlocks)); w.blocks >= maxBlocks {
		return xattr, bad("/%s: %d bytes; there are more than %d blocks in all", e.Path, f.size, maxBlocks)
	}
	for ; n > 0 && c.err == nil; n-- {
		f.blocks = append(f.blocks, c.u32())
	}
	e.Size = int64(f.size)
	if e.Size > 0 {
		e.Open = func() (io.ReadCloser, error) { return &fileReader{content: f, at: int64(f.start)}, nil }
	}
	return xattr, c.err
}
