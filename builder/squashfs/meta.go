package squashfs

import (
	"encoding/binary"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

var le = binary.LittleEndian

// table collects records into compressed metadata blocks of 8 KiB.
type table struct {
	enc    *zstd.Encoder
	buf    []byte   // not compressed yet, less than a block
	out    []byte   // blocks with their headers
	starts []uint32 // where each block starts in out, the one being filled included
}

func newTable(enc *zstd.Encoder) *table { return &table{enc: enc} }

// position is where the next record will stand: the start of its block in the
// table and its offset in the uncompressed block.
func (t *table) position() (start uint32, offset uint16) {
	return uint32(len(t.out)), uint16(len(t.buf))
}

func (t *table) ref() uint64 {
	start, offset := t.position()
	return uint64(start)<<16 | uint64(offset)
}

func (t *table) add(p []byte) {
	for len(p) > 0 {
		if len(t.buf) == 0 {
			t.starts = append(t.starts, uint32(len(t.out)))
		}
		n := min(len(p), metadataSize-len(t.buf))
		t.buf, p = append(t.buf, p[:n]...), p[n:]
		if len(t.buf) == metadataSize {
			t.flush()
		}
	}
}

func (t *table) flush() {
	if len(t.buf) == 0 {
		return
	}
	at := len(t.out)
	t.out = append(t.out, 0, 0)
	t.out = t.enc.EncodeAll(t.buf, t.out)
	header := len(t.out) - at - 2
	if header >= len(t.buf) {
		t.out = append(t.out[:at+2], t.buf...)
		header = len(t.buf) | rawMeta
	}
	le.PutUint16(t.out[at:], uint16(header))
	t.buf = t.buf[:0]
}

// finish returns the whole table.
func (t *table) finish() []byte {
	t.flush()
	return t.out
}

// metadata fills the inode and the directory table. A directory's listing points
// at its files' inodes and its inode at the listing, so directories are written
// from the leaves up.
type metadata struct {
	inodes, dirs *table
	ids          map[uint32]uint16
	parentOfRoot uint32
}

func (m *metadata) addDir(dir *inode) error {
	for _, c := range dir.children {
		if c.to.entry.Kind == tree.Dir {
			if err := m.addDir(c.to); err != nil {
				return err
			}
		}
	}
	// Plain files after all subdirectories, side by side: their references then
	// share a metadata block and so a header in the listing.
	for _, c := range dir.children {
		if c.to.entry.Kind != tree.Dir && !c.to.written {
			m.addInode(c.to)
		}
	}
	return m.addDirInode(dir)
}

// place notes where the inode that is about to be added will stand.
func (m *metadata) place(n *inode) {
	n.ref, n.written = m.inodes.ref(), true
}

func (m *metadata) header(n *inode, kind uint16) []byte {
	b := make([]byte, 0, 64)
	b = le.AppendUint16(b, kind)
	b = le.AppendUint16(b, uint16(n.entry.Perm&0o7777))
	b = le.AppendUint16(b, m.ids[n.entry.UID])
	b = le.AppendUint16(b, m.ids[n.entry.GID])
	b = le.AppendUint32(b, clampTime(n.entry.MTime))
	return le.AppendUint32(b, n.number)
}

func (m *metadata) addInode(n *inode) {
	m.place(n)
	if n.entry.Kind == tree.Regular {
		m.addFileInode(n)
		return
	}
	kind := kindType[n.entry.Kind]
	if n.xattr != noXattr {
		kind += extended
	}
	b := le.AppendUint32(m.header(n, kind), n.links)
	switch n.entry.Kind {
	case tree.Symlink:
		b = le.AppendUint32(b, uint32(len(n.entry.Target)))
		b = append(b, n.entry.Target...)
	case tree.Char, tree.Block:
		b = le.AppendUint32(b, deviceNumber(n.entry.Major, n.entry.Minor))
	}
	if n.xattr != noXattr {
		b = le.AppendUint32(b, n.xattr)
	}
	m.inodes.add(b)
}

func (m *metadata) addFileInode(n *inode) {
	d := n.data
	if n.sameAs != nil {
		d = n.sameAs.data
	}
	size := n.entry.Size
	var b []byte
	if n.xattr == noXattr && n.links == 1 && d.sparse == 0 && size <= math.MaxUint32 && d.start <= math.MaxUint32 {
		b = m.header(n, typeFile)
		b = le.AppendUint32(b, uint32(d.start))
		b = le.AppendUint32(b, d.fragment)
		b = le.AppendUint32(b, d.fragOffset)
		b = le.AppendUint32(b, uint32(size))
	} else {
		b = m.header(n, typeFile+extended)
		b = le.AppendUint64(b, uint64(d.start))
		b = le.AppendUint64(b, uint64(size))
		b = le.AppendUint64(b, uint64(d.sparse))
		b = le.AppendUint32(b, n.links)
		b = le.AppendUint32(b, d.fragment)
		b = le.AppendUint32(b, d.fragOffset)
		b = le.AppendUint32(b, n.xattr)
	}
	for _, w := range d.blocks {
		b = le.AppendUint32(b, w)
	}
	m.inodes.add(b)
}

func (m *metadata) addDirInode(dir *inode) error {
	listing, index := list(dir.children)
	start, offset := m.dirs.position()
	first := len(m.dirs.starts) // number of the block in which the listing begins
	if offset != 0 {
		first--
	}
	m.dirs.add(listing)
	size := len(listing) + 3 // the kernel counts "." and ".." as three bytes
	if size > math.MaxInt32 || len(index) > math.MaxUint16 {
		return fault.New(fault.Input, "%s: too many files in one directory", dir.entry.Path)
	}
	parent := m.parentOfRoot
	if dir.parent != nil {
		parent = dir.parent.number
	}
	m.place(dir)
	if dir.xattr == noXattr && len(index) == 0 && size <= math.MaxUint16 {
		b := m.header(dir, typeDir)
		b = le.AppendUint32(b, start)
		b = le.AppendUint32(b, dir.links)
		b = le.AppendUint16(b, uint16(size))
		b = le.AppendUint16(b, offset)
		m.inodes.add(le.AppendUint32(b, parent))
		return nil
	}
	b := m.header(dir, typeDir+extended)
	b = le.AppendUint32(b, dir.links)
	b = le.AppendUint32(b, uint32(size))
	b = le.AppendUint32(b, start)
	b = le.AppendUint32(b, parent)
	b = le.AppendUint16(b, uint16(len(index)))
	b = le.AppendUint16(b, offset)
	b = le.AppendUint32(b, dir.xattr)
	for _, i := range index {
		b = le.AppendUint32(b, uint32(i.at))
		b = le.AppendUint32(b, m.dirs.starts[first+(int(offset)+i.at)/metadataSize])
		b = le.AppendUint32(b, uint32(len(i.name)-1))
		b = append(b, i.name...)
	}
	m.inodes.add(b)
	return nil
}

// indexEntry lets the kernel skip into a long listing: name is the first one
// after the byte at.
type indexEntry struct {
	at   int
	name string
}

// list makes a directory's listing: runs of entries whose inodes share a
// metadata block, each under a header; and an index entry for every 8 KiB of it.
func list(children []name) (listing []byte, index []indexEntry) {
	var header, count, indexed int // where the current header stands, entries under it, where the last index entry points
	var base, start uint32
	open := false
	for _, c := range children {
		block := uint32(c.to.ref >> 16)
		delta := int64(c.to.number) - int64(base)
		far := delta < math.MinInt16 || delta > math.MaxInt16
		wantIndex := len(listing)+12+8+len(c.name) > indexed+metadataSize
		if !open || block != start || far || count == maxDirEntries || wantIndex {
			if wantIndex {
				index = append(index, indexEntry{len(listing), c.name})
				indexed = len(listing)
			}
			header, count, open = len(listing), 0, true
			base, start = c.to.number, block
			delta = 0
			listing = le.AppendUint32(listing, 0)
			listing = le.AppendUint32(listing, start)
			listing = le.AppendUint32(listing, base)
		}
		le.PutUint32(listing[header:], uint32(count))
		count++
		listing = le.AppendUint16(listing, uint16(c.to.ref))
		listing = le.AppendUint16(listing, uint16(int16(delta)))
		listing = le.AppendUint16(listing, kindType[c.to.entry.Kind])
		listing = le.AppendUint16(listing, uint16(len(c.name)-1))
		listing = append(listing, c.name...)
	}
	return listing, index
}
