package inspect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/lima-vm/go-qcow2reader/image/qcow2"

	"github.com/slipwayhq/slipway/builder/export"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Formats that are recognised.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
	FormatVMDK  = "vmdk"
	FormatOVA   = "ova"
)

// opened is an image file seen as the disk that a machine sees.
type opened struct {
	format string
	disk   io.ReaderAt
	size   int64 // of the disk
}

// sector is the size that all formats count in.
const sector = 512

// openDisk recognises a file of size bytes by its first sectors.
func openDisk(f io.ReaderAt, size int64) (*opened, error) {
	head := make([]byte, 2*sector)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Input, "reading it: %w", err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return openQCOW2(f, size)
	case bytes.HasPrefix(head, []byte("KDMV")):
		disk, n, err := export.OpenVMDK(f, size)
		return &opened{FormatVMDK, disk, n}, err
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return openOVA(f, size)
	case len(head) >= sector+8 && string(head[sector:sector+8]) == "EFI PART":
		return &opened{FormatRaw, f, size}, nil
	}
	return nil, fault.New(fault.Input, "this is no disk image: it begins like neither qcow2, VMDK, OVA nor a partitioned disk").
		WithMend("name a file that slipway build wrote")
}

// openOVA opens the first disk of an archive.
func openOVA(f io.ReaderAt, size int64) (*opened, error) {
	members, err := export.Members(f, size)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if strings.HasSuffix(m.Name, ".vmdk") {
			disk, n, err := export.OpenVMDK(io.NewSectionReader(f, m.Offset, m.Size), m.Size)
			return &opened{FormatOVA, disk, n}, err
		}
	}
	return nil, fault.New(fault.Input, "ova: no disk (.vmdk) in it").
		WithMend("name an OVA that slipway build wrote")
}

const (
	maxDisk       = 64 << 40 // 64 TiB
	qcow2Header   = 104
	minClusterLog = 9
	maxClusterLog = 21
	// qcow2Compression is the one incompatible feature that reading copes with.
	qcow2Compression = 1 << 3
)

// openQCOW2 checks the header before the library takes its word for anything
// (QEMU, docs/interop/qcow2.txt, "Header"): tables must be in the file and a
// backing file is refused, since the library would open whatever path it names.
func openQCOW2(f io.ReaderAt, size int64) (*opened, error) {
	h := make([]byte, qcow2Header)
	if _, err := f.ReadAt(h, 0); err != nil {
		return nil, fault.New(fault.Integrity, "qcow2: the header is cut off: %w", err)
	}
	be := binary.BigEndian
	version, clusterLog, disk := be.Uint32(h[4:]), be.Uint32(h[20:]), be.Uint64(h[24:])
	l1Entries, l1Offset := uint64(be.Uint32(h[36:])), be.Uint64(h[40:])
	switch {
	case version != 2 && version != 3:
		return nil, fault.New(fault.Integrity, "qcow2: version %d is not known", version)
	case be.Uint64(h[8:]) != 0:
		return nil, fault.New(fault.Input, "qcow2: the image is only the difference to a backing file").
			WithMend("make it whole: qemu-img convert -O qcow2 OLD NEW")
	case be.Uint32(h[32:]) != 0:
		return nil, fault.New(fault.Input, "qcow2: the image is encrypted")
	case version == 3 && be.Uint64(h[72:])&^qcow2Compression != 0:
		return nil, fault.New(fault.Input, "qcow2: incompatible features %#x are set: the image is in use, damaged, or of a kind that is not read", be.Uint64(h[72:])).
			WithMend("shut the machine down and run qemu-img check")
	case clusterLog < minClusterLog || clusterLog > maxClusterLog || disk > maxDisk:
		return nil, fault.New(fault.Integrity, "qcow2: clusters of 2^%d bytes and a disk of %d bytes make no sense", clusterLog, disk)
	case l1Offset > uint64(size) || l1Entries*8 > uint64(size)-l1Offset:
		return nil, fault.New(fault.Integrity, "qcow2: its table of %d entries at %d is not in the file: the file is cut off", l1Entries, l1Offset)
	case l1Entries<<(2*clusterLog-3) < disk:
		return nil, fault.New(fault.Integrity, "qcow2: its table of %d entries is too short for a disk of %d bytes", l1Entries, disk)
	}
	if err := checkExtensions(f, h); err != nil {
		return nil, err
	}
	img, err := qcow2.Open(io.NewSectionReader(f, 0, size), nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, fault.New(fault.Integrity, "qcow2: %w", err)
	}
	return &opened{FormatQCOW2, strict{img, img.Size()}, img.Size()}, nil
}

// maxExtension bounds a header extension: a feature name table, the largest, has
// 48 bytes a name.
const maxExtension = 64 << 10

// checkExtensions bounds the header extensions, since the library takes memory
// for as much as each says it has.
func checkExtensions(f io.ReaderAt, header []byte) error {
	be := binary.BigEndian
	at := int64(72)
	if be.Uint32(header[4:]) == 3 {
		at = int64(be.Uint32(header[100:]))
	}
	for range 64 {
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, at); err != nil {
			return fault.New(fault.Integrity, "qcow2: the header extensions are cut off: %w", err)
		}
		kind, length := be.Uint32(b), int64(be.Uint32(b[4:]))
		if kind == 0 {
			return nil
		}
		if length > maxExtension {
			return fault.New(fault.Integrity, "qcow2: a header extension of %d bytes makes no sense", length)
		}
		at += 8 + (length+7)&^7
	}
	return fault.New(fault.Integrity, "qcow2: the header extensions have no end")
}

// strict is a disk whose reader may fall short: what is missing is an error.
type strict struct {
	io.ReaderAt
	size int64
}

func (s strict) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	want, short := p, false
	if int64(len(want)) > s.size-off {
		want, short = want[:s.size-off], true
	}
	n, err := s.ReaderAt.ReadAt(want, off)
	if n == len(want) {
		if short {
			return n, io.EOF
		}
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, fault.New(fault.Integrity, "the image file is cut off or damaged: reading %d bytes at %d of its disk: %w", len(want), off, err)
}

// openFile opens an image file for reading.
func openFile(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fault.New(fault.Input, "%w", err).WithMend("name an image file that exists and can be read")
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		f.Close()
		return nil, 0, fault.New(fault.Input, "%s: %w", path, err)
	}
	return f, info.Size(), nil
}
