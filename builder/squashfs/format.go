package squashfs

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/slipwayhq/slipway/builder/tree"
)

// What follows keeps the names of the kernel's fs/squashfs/squashfs_fs.h.
const (
	magic          = 0x73717368
	superblockSize = 96
	metadataSize   = 8192    // uncompressed bytes of a metadata block
	minBlockSize   = 4 << 10 // limits that the kernel checks at mount
	maxBlockSize   = 1 << 20
	padTo          = 4096 // block devices want whole pages

	compGzip = 1
	compZstd = 6

	flagNoXattrs   = 0x0200
	flagDuplicates = 0x0040
	flagExportable = 0x0080

	rawBlock     = 1 << 24 // in the size word of a data block: stored uncompressed
	rawMeta      = 1 << 15 // the same in the header of a metadata block
	noFragment   = math.MaxUint32
	noXattr      = math.MaxUint32
	invalidBlock = math.MaxUint64

	maxNameLen      = 256
	maxDirEntries   = 256 // entries under one directory header
	fragmentEntry   = 16
	xattrIDEntry    = 16
	xattrOutOfLine  = 0x100
	xattrPrefixMask = 0xff
)

// Inode types; the extended form of a type is type + 7.
const (
	typeDir = iota + 1
	typeFile
	typeSymlink
	typeBlock
	typeChar
	typeFifo
	typeSocket
	extended = 7
)

var kindType = map[tree.Kind]uint16{
	tree.Dir: typeDir, tree.Regular: typeFile, tree.Symlink: typeSymlink, tree.Block: typeBlock,
	tree.Char: typeChar, tree.Fifo: typeFifo, tree.Socket: typeSocket,
}

// xattrPrefixes are the name spaces that squashfs can hold, at their number.
var xattrPrefixes = [...]string{"user.", "trusted.", "security."}

// superblock is the first thing in the file, little-endian.
type superblock struct {
	Magic         uint32
	Inodes        uint32
	MkfsTime      uint32
	BlockSize     uint32
	Fragments     uint32
	Compression   uint16
	BlockLog      uint16
	Flags         uint16
	IDs           uint16
	Major, Minor  uint16
	RootInode     uint64
	BytesUsed     uint64
	IDTable       uint64
	XattrTable    uint64
	InodeTable    uint64
	DirTable      uint64
	FragmentTable uint64
	ExportTable   uint64
}

func (s *superblock) bytes() []byte {
	b, err := binary.Append(make([]byte, 0, superblockSize), binary.LittleEndian, s)
	if err != nil {
		panic(fmt.Sprintf("superblock has a fixed size: %v", err)) // cannot happen: no outside data decides it
	}
	return b
}

// deviceNumber packs a device as the kernel's new_encode_dev does.
func deviceNumber(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func splitDevice(d uint32) (major, minor uint32) {
	return d & 0xfff00 >> 8, d&0xff | d>>12&0xfff00
}

// clampTime fits a time into the 32 unsigned bits that an inode has.
func clampTime(t int64) uint32 { return uint32(min(max(t, 0), math.MaxUint32)) }
