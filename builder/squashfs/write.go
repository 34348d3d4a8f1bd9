package squashfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"math/bits"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Defaults of Options, chosen by measurement; see the package comment.
const (
	DefaultLevel     = 3
	DefaultBlockSize = 256 << 10
)

// Options say how an image is written. The zero value is good.
type Options struct {
	// Date is the time of creation in the superblock, in Unix seconds.
	Date int64
	// Level is a zstd level as the zstd command counts them (1 to 19); the
	// encoder has four steps and takes the nearest. 0 means DefaultLevel.
	Level int
	// BlockSize is a power of two from 4 KiB to 1 MiB. 0 means DefaultBlockSize.
	BlockSize int
	// Workers is how many goroutines compress; the bytes do not depend on it.
	// 0 means one per CPU.
	Workers int
}

func (o Options) withDefaults() (Options, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if bits.OnesCount(uint(o.BlockSize)) != 1 || o.BlockSize < minBlockSize || o.BlockSize > maxBlockSize {
		return o, fault.New(fault.Internal, "squashfs block size %d is not a power of two from %d to %d", o.BlockSize, minBlockSize, maxBlockSize)
	}
	return o, nil
}

// newEncoder returns an encoder whose frames the kernel accepts: it gives the
// decoder a window of one block, so a frame must not ask for more.
func (o Options) newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(o.Level)),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(max(o.BlockSize, metadataSize)),
		zstd.WithSingleSegment(true),
		zstd.WithEncoderCRC(false),
		zstd.WithLowerEncoderMem(false),
	)
}

// Write writes t as a squashfs image to w and returns the image's size, which is
// a multiple of 4 KiB. The bytes depend on t and on o without its Workers, on
// nothing else. On an error what w holds is not an image.
func Write(ctx context.Context, w io.WriterAt, t *tree.Tree, o Options) (int64, error) {
	o, err := o.withDefaults()
	if err != nil {
		return 0, err
	}
	root, inodes, err := plan(t)
	if err != nil {
		return 0, err
	}
	out := &counter{w: bufio.NewWriterSize(io.NewOffsetWriter(w, superblockSize), 1<<20), n: superblockSize}
	fragments, err := packData(ctx, out, inodes, o)
	if err != nil {
		return 0, err
	}
	enc, err := o.newEncoder()
	if err != nil {
		return 0, err
	}
	defer enc.Close()
	sb := superblock{
		Magic: magic, Inodes: uint32(len(inodes)), MkfsTime: clampTime(o.Date), BlockSize: uint32(o.BlockSize),
		Fragments: uint32(len(fragments) / fragmentEntry), Compression: compZstd,
		BlockLog: uint16(bits.TrailingZeros(uint(o.BlockSize))), Flags: flagDuplicates | flagExportable, Major: 4,
	}
	if err := writeTables(out, enc, &sb, root, inodes, fragments); err != nil {
		return 0, err
	}
	sb.BytesUsed = uint64(out.n)
	if rest := out.n % padTo; rest != 0 {
		if _, err := out.Write(make([]byte, padTo-rest)); err != nil {
			return 0, err
		}
	}
	if err := out.w.Flush(); err != nil {
		return 0, err
	}
	if _, err := w.WriteAt(sb.bytes(), 0); err != nil {
		return 0, err
	}
	return out.n, nil
}

// writeTables writes all that follows the data, in the order in which the kernel
// checks the tables against each other: inodes, directories, fragments, export,
// ids, xattrs.
func writeTables(out *counter, enc *zstd.Encoder, sb *superblock, root *inode, inodes []*inode, fragments []byte) error {
	ids, err := collectIDs(inodes)
	if err != nil {
		return err
	}
	xattrs, err := collectXattrs(enc, inodes)
	if err != nil {
		return err
	}
	m := &metadata{inodes: newTable(enc), dirs: newTable(enc), ids: ids.index, parentOfRoot: uint32(len(inodes)) + 1}
	if err := m.addDir(root); err != nil {
		return err
	}
	sb.RootInode = root.ref
	sb.IDs = uint16(len(ids.list) / 4)
	sb.InodeTable = uint64(out.n)
	if _, err := out.Write(m.inodes.finish()); err != nil {
		return err
	}
	sb.DirTable = uint64(out.n)
	if _, err := out.Write(m.dirs.finish()); err != nil {
		return err
	}
	if sb.FragmentTable, err = writeIndexed(out, enc, fragments); err != nil {
		return err
	}
	refs := make([]byte, 8*len(inodes))
	for _, n := range inodes {
		binary.LittleEndian.PutUint64(refs[8*(n.number-1):], n.ref)
	}
	if sb.ExportTable, err = writeIndexed(out, enc, refs); err != nil {
		return err
	}
	if sb.IDTable, err = writeIndexed(out, enc, ids.list); err != nil {
		return err
	}
	sb.XattrTable = invalidBlock
	if xattrs == nil {
		sb.Flags |= flagNoXattrs
		return nil
	}
	sb.XattrTable, err = xattrs.write(out, enc)
	return err
}

// writeIndexed writes records as metadata blocks and after them the list of
// where each block stands; the position of that list is what the superblock names.
func writeIndexed(out *counter, enc *zstd.Encoder, records []byte) (uint64, error) {
	t := newTable(enc)
	t.add(records)
	base := uint64(out.n)
	if _, err := out.Write(t.finish()); err != nil {
		return 0, err
	}
	at := uint64(out.n)
	list := make([]byte, 0, 8*len(t.starts))
	for _, s := range t.starts {
		list = binary.LittleEndian.AppendUint64(list, base+uint64(s))
	}
	_, err := out.Write(list)
	return at, err
}

// counter is a writer that knows its position in the image.
type counter struct {
	w *bufio.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
