package squashfs

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Limits on what an image may claim. They are far above what any appliance has
// and keep a hostile file from taking the machine's memory.
const (
	maxEntries     = 1 << 20
	maxPathLen     = 4096
	maxBlocks      = 1 << 24 // data blocks of all files together
	maxFragments   = 1 << 20
	maxXattrBytes  = 64 << 20 // of all files together
	maxXattrs      = 1024     // of one file
	cachedMeta     = 4096     // metadata blocks kept uncompressed
	cachedFragment = 8        // fragment blocks kept uncompressed
	maxFileSize    = 1 << 56
)

// Reader reads an image. Its trees may be used from several goroutines, as long
// as what it reads from may.
type Reader struct {
	r         io.ReaderAt
	sb        superblock
	unpack    func(src []byte, limit int) ([]byte, error)
	ids       []uint32
	fragments []byte
	xattrs    *xattrReader
	meta      map[int64]metaBlock
	cache     fragmentCache
}

func bad(format string, args ...any) *fault.Error {
	return fault.New(fault.Integrity, "squashfs: "+format, args...)
}

// Open reads the superblock and the small tables of an image of size bytes.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	s := &Reader{r: io.NewSectionReader(r, 0, size), meta: map[int64]metaBlock{}}
	head := make([]byte, superblockSize)
	if _, err := s.r.ReadAt(head, 0); err != nil {
		return nil, bad("reading the superblock: %w", noEOF(err))
	}
	if err := binary.Read(bytes.NewReader(head), le, &s.sb); err != nil {
		return nil, err
	}
	sb := &s.sb
	switch {
	case sb.Magic != magic:
		return nil, bad("this is not a squashfs image")
	case sb.Major != 4 || sb.Minor != 0:
		return nil, bad("version %d.%d cannot be read, only 4.0", sb.Major, sb.Minor)
	case bits.OnesCount32(sb.BlockSize) != 1 || sb.BlockSize < minBlockSize || sb.BlockSize > maxBlockSize:
		return nil, bad("block size %d", sb.BlockSize)
	case sb.BytesUsed > uint64(size):
		return nil, bad("the image has %d bytes but only %d are there; it is cut off", sb.BytesUsed, size)
	case sb.Inodes > maxEntries || sb.Fragments > maxFragments || sb.IDs == 0:
		return nil, bad("it claims %d files, %d fragments, %d owners", sb.Inodes, sb.Fragments, sb.IDs)
	}
	var err error
	if s.unpack, err = decompressor(sb.Compression); err != nil {
		return nil, err
	}
	idTable, err := s.indexed(sb.IDTable, int64(sb.IDs)*4)
	if err != nil {
		return nil, bad("table of owners: %w", err)
	}
	for ; len(idTable) > 0; idTable = idTable[4:] {
		s.ids = append(s.ids, le.Uint32(idTable))
	}
	if sb.Fragments > 0 {
		if s.fragments, err = s.indexed(sb.FragmentTable, int64(sb.Fragments)*fragmentEntry); err != nil {
			return nil, bad("table of fragments: %w", err)
		}
	}
	if sb.XattrTable != invalidBlock {
		if s.xattrs, err = s.openXattrs(); err != nil {
			return nil, bad("extended attributes: %w", err)
		}
	}
	return s, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decompressor returns a function that unpacks one block of at most limit bytes.
func decompressor(kind uint16) (func([]byte, int) ([]byte, error), error) {
	switch kind {
	case compZstd:
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBlockSize))
		if err != nil {
			return nil, err
		}
		return func(src []byte, limit int) ([]byte, error) {
			out, err := dec.DecodeAll(src, nil)
			if err == nil && len(out) > limit {
				err = bad("a block has more than %d bytes", limit)
			}
			return out, err
		}, nil
	case compGzip:
		return func(src []byte, limit int) ([]byte, error) {
			z, err := zlib.NewReader(bytes.NewReader(src))
			if err != nil {
				return nil, err
			}
			defer z.Close()
			out, err := io.ReadAll(io.LimitReader(z, int64(limit)+1))
			if err == nil && len(out) > limit {
				err = bad("a block has more than %d bytes", limit)
			}
			return out, err
		}, nil
	}
	return nil, bad("compression %d cannot be read, only gzip (1) and zstd (6)", kind).
		WithMend("Make the image again with mksquashfs -comp zstd.")
}

// metaBlock is an uncompressed metadata block and where the next one starts.
type metaBlock struct {
	data []byte
	next int64
}

func (s *Reader) metadata(at int64) (metaBlock, error) {
	if b, ok := s.meta[at]; ok {
		return b, nil
	}
	var head [2]byte
	if _, err := s.r.ReadAt(head[:], at); err != nil {
		return metaBlock{}, bad("metadata at byte %d: %w", at, noEOF(err))
	}
	h := int(le.Uint16(head[:]))
	src := make([]byte, h&^rawMeta)
	if len(src) == 0 || len(src) > metadataSize {
		return metaBlock{}, bad("metadata at byte %d has %d bytes", at, len(src))
	}
	if n, err := s.r.ReadAt(src, at+2); n < len(src) {
		return metaBlock{}, bad("metadata at byte %d: %w", at, noEOF(err))
	}
	b := metaBlock{data: src, next: at + 2 + int64(len(src))}
	if h&rawMeta == 0 {
		var err error
		if b.data, err = s.unpack(src, metadataSize); err != nil {
			return metaBlock{}, bad("metadata at byte %d: %w", at, err)
		}
		if len(b.data) == 0 {
			return metaBlock{}, bad("metadata at byte %d is empty", at)
		}
	}
	if len(s.meta) >= cachedMeta {
		clear(s.meta)
	}
	s.meta[at] = b
	return b, nil
}

// cursor reads on from a place in a metadata table, from block to block.
type cursor struct {
	s    *Reader
	rest []byte
	next int64
	err  error // the first one; all later reads give zeros
}

// at starts at the reference ref (block start and offset) of the table at base.
func (s *Reader) at(base, block uint64, offset uint16) *cursor {
	c := &cursor{s: s}
	if base > s.sb.BytesUsed || block > s.sb.BytesUsed {
		c.err = bad("a reference to byte %d leaves the image", base+block)
		return c
	}
	b, err := s.metadata(int64(base + block))
	if err == nil && int(offset) > len(b.data) {
		err = bad("a reference to byte %d of the block at %d, which has %d", offset, base+block, len(b.data))
	}
	if err != nil {
		c.err = err
		return c
	}
	c.rest, c.next = b.data[offset:], b.next
	return c
}

// bytes returns the next n bytes. n must be limited by the caller.
func (c *cursor) bytes(n int) []byte {
	out := make([]byte, 0, n)
	for len(out) < n && c.err == nil {
		if len(c.rest) == 0 {
			b, err := c.s.metadata(c.next)
			if err != nil {
				c.err = err
				break
			}
			c.rest, c.next = b.data, b.next
		}
		k := min(n-len(out), len(c.rest))
		out, c.rest = append(out, c.rest[:k]...), c.rest[k:]
	}
	return out[:n]
}

func (c *cursor) u16() uint16 { return le.Uint16(c.bytes(2)) }
func (c *cursor) u32() uint32 { return le.Uint32(c.bytes(4)) }
func (c *cursor) u64() uint64 { return le.Uint64(c.bytes(8)) }

// indexed reads n bytes of records that stand in metadata blocks, whose places
// are listed at byte at.
func (s *Reader) indexed(at uint64, n int64) ([]byte, error) {
	blocks := (n + metadataSize - 1) / metadataSize
	if at > s.sb.BytesUsed || blocks*8 > int64(s.sb.BytesUsed-at) {
		return nil, bad("the table at byte %d leaves the image", at)
	}
	list := make([]byte, blocks*8)
	if k, err := s.r.ReadAt(list, int64(at)); k < len(list) {
		return nil, bad("the table at byte %d: %w", at, noEOF(err))
	}
	var out []byte
	for ; len(list) > 0; list = list[8:] {
		start := le.Uint64(list)
		if start > s.sb.BytesUsed {
			return nil, bad("the table at byte %d points to byte %d, outside the image", at, start)
		}
		b, err := s.metadata(int64(start))
		if err != nil {
			return nil, err
		}
		want := min(n-int64(len(out)), metadataSize)
		if int64(len(b.data)) < want {
			return nil, bad("the table at byte %d is too short", at)
		}
		out = append(out, b.data[:want]...)
	}
	return out, nil
}

// xattrReader finds the sets of extended attributes.
type xattrReader struct {
	pairs uint64 // start of names and values
	ids   []byte
}

func (s *Reader) openXattrs() (*xattrReader, error) {
	head := make([]byte, 16)
	if s.sb.XattrTable > s.sb.BytesUsed {
		return nil, bad("the table leaves the image")
	}
	if _, err := s.r.ReadAt(head, int64(s.sb.XattrTable)); err != nil {
		return nil, noEOF(err)
	}
	count := le.Uint32(head[8:])
	if count > maxEntries {
		return nil, bad("%d sets", count)
	}
	ids, err := s.indexed(s.sb.XattrTable+16, int64(count)*xattrIDEntry)
	return &xattrReader{pairs: le.Uint64(head), ids: ids}, err
}

// readXattrs returns the set with the given index.
func (s *Reader) readXattrs(i uint32) (map[string][]byte, error) {
	if s.xattrs == nil || uint64(i)*xattrIDEntry >= uint64(len(s.xattrs.ids)) {
		return nil, bad("extended attributes number %d do not exist", i)
	}
	id := s.xattrs.ids[i*xattrIDEntry:]
	ref, count := le.Uint64(id), le.Uint32(id[8:])
	if count > maxXattrs {
		return nil, bad("a file with %d extended attributes", count)
	}
	c := s.at(s.xattrs.pairs, ref>>16, uint16(ref))
	out := make(map[string][]byte, count)
	for range count {
		kind, n := c.u16(), c.u16()
		name := string(c.bytes(int(n)))
		size := c.u32()
		values := c
		if kind&xattrOutOfLine != 0 && size == 8 { // long values that several files share stand elsewhere
			ref := c.u64()
			values = s.at(s.xattrs.pairs, ref>>16, uint16(ref))
			size = values.u32()
		}
		if size > 1<<16 || int(kind&xattrPrefixMask) >= len(xattrPrefixes) {
			return nil, bad("extended attribute %q of kind %#x with %d bytes", name, kind, size)
		}
		value := values.bytes(int(size))
		if c.err != nil || values.err != nil {
			return nil, bad("extended attribute %q is cut off", name)
		}
		out[xattrPrefixes[kind&xattrPrefixMask]+name] = value
	}
	return out, c.err
}
