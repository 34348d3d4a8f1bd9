package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

type fat struct {
	r        io.ReaderAt
	bits     int   // 12, 16 or 32
	sector   int64 // bytes
	cluster  int64 // bytes
	table    int64 // offset of the first FAT
	tableLen int64 // its length
	data     int64 // offset of cluster 2
	count    uint32
	rootOff  int64 // FAT12/16: the root directory has its own place
	rootLen  int64
	rootClus uint32 // FAT32
}

func openFAT(r io.ReaderAt) (*Volume, error) {
	b := make([]byte, 512)
	if err := readFull(r, b, 0); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, ErrUnknown
		}
		return nil, err
	}
	le := binary.LittleEndian
	f := &fat{r: r, sector: int64(le.Uint16(b[11:])), rootLen: int64(le.Uint16(b[17:])) * 32}
	perCluster, reserved, fats := int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	// A boot sector has no magic number of its own: an MBR ends in the same
	// two bytes. What tells it is that all of its figures make sense.
	jump := b[0] == 0xeb && b[2] == 0x90 || b[0] == 0xe9
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || !jump,
		f.sector != 512 && f.sector != 1024 && f.sector != 2048 && f.sector != 4096,
		perCluster == 0 || perCluster&(perCluster-1) != 0,
		reserved == 0 || fats == 0 || fats > 2:
		return nil, ErrUnknown
	}
	f.cluster = perCluster * f.sector
	sectors, perFAT := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	label := b[43:54]
	if perFAT == 0 {
		perFAT, f.rootClus, label = int64(le.Uint32(b[36:])), le.Uint32(b[44:]), b[71:82]
	}
	rootSectors := (f.rootLen + f.sector - 1) / f.sector
	f.table, f.tableLen = reserved*f.sector, perFAT*f.sector
	f.rootOff = f.table + fats*f.tableLen
	f.data = f.rootOff + rootSectors*f.sector
	dataSectors := sectors - f.data/f.sector
	if perFAT == 0 || dataSectors <= 0 {
		return nil, ErrUnknown
	}
	f.count = uint32(dataSectors / perCluster)
	// The number of clusters, and nothing else, decides the kind of FAT.
	switch {
	case f.count < 4085:
		f.bits = 12
	case f.count < 65525:
		f.bits = 16
	default:
		f.bits = 32
	}
	if (f.rootLen == 0) != (f.rootClus != 0) || f.rootLen == 0 && f.bits != 32 && !strings.HasPrefix(string(b[82:90]), "FAT32") {
		return nil, ErrUnknown
	}
	if f.rootLen == 0 {
		f.bits = 32 // mkfs.vfat -F 32 makes small ones too
	}
	v := &Volume{Type: "vfat", Label: strings.TrimRight(string(label), " \x00"), fsys: f}
	// The label in the root directory is the one that tools change later.
	if dir, err := f.dirBytes(f.root()); err == nil {
		for i := 0; i+32 <= len(dir) && dir[i] != 0; i += 32 {
			if attr := dir[i+11]; dir[i] != 0xe5 && attr&0x08 != 0 && attr != 0x0f {
				v.Label = strings.TrimRight(string(dir[i:i+11]), " \x00")
				break
			}
		}
	}
	return v, nil
}

func (f *fat) root() entry { return entry{dir: true, start: f.rootClus} }

// next returns the cluster that follows one, and whether there is one.
func (f *fat) next(c uint32) (uint32, bool, error) {
	b := make([]byte, 2)
	off := int64(c) * int64(f.bits) / 8
	if f.bits == 32 {
		b = make([]byte, 4)
	}
	if off+int64(len(b)) > f.tableLen {
		return 0, false, fmt.Errorf("FAT: cluster %d is not in the table", c)
	}
	if err := readFull(f.r, b, f.table+off); err != nil {
		return 0, false, err
	}
	var n, end uint32
	switch f.bits {
	case 12:
		n, end = uint32(binary.LittleEndian.Uint16(b)), 0xff8
		if c%2 == 1 {
			n >>= 4
		}
		n &= 0xfff
	case 16:
		n, end = uint32(binary.LittleEndian.Uint16(b)), 0xfff8
	case 32:
		n, end = binary.LittleEndian.Uint32(b)&0x0fffffff, 0x0ffffff8
	}
	return n, n < end, nil
}

// chain reads up to limit bytes of a chain of clusters. A chain can hold no
// more than limit bytes however it is linked, so a loop ends too.
func (f *fat) chain(start uint32, limit int64) ([]byte, error) {
	var out []byte
	c, more := start, true
	for more && int64(len(out)) < limit {
		if c < 2 || c-2 >= f.count {
			return nil, fmt.Errorf("FAT: cluster %d does not exist", c)
		}
		b := make([]byte, min(f.cluster, limit-int64(len(out))))
		if err := readFull(f.r, b, f.data+int64(c-2)*f.cluster); err != nil {
			return nil, err
		}
		out = append(out, b...)
		var err error
		if c, more, err = f.next(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f *fat) dirBytes(dir entry) ([]byte, error) {
	if dir.start != 0 {
		return f.chain(dir.start, maxDir)
	}
	b := make([]byte, f.rootLen)
	return b, readFull(f.r, b, f.rootOff)
}

func (f *fat) list(dir entry) ([]entry, error) {
	b, err := f.dirBytes(dir)
	if err != nil {
		return nil, err
	}
	var out []entry
	var long []uint16
	for i := 0; i+32 <= len(b) && b[i] != 0; i += 32 {
		rec := b[i : i+32]
		attr := rec[11]
		switch {
		case rec[0] == 0xe5:
			long = nil
			continue
		case attr == 0x0f:
			// The pieces of a long name stand last piece first.
			if rec[0]&0x40 != 0 {
				long = nil
			}
			if len(long) < 260 {
				long = append(longPiece(rec), long...)
			}
			continue
		case attr&0x08 != 0 || rec[0] == '.':
			long = nil
			continue
		}
		e := entry{
			names: []string{shortName(rec)},
			dir:   attr&0x10 != 0,
			start: uint32(binary.LittleEndian.Uint16(rec[26:])),
			size:  int64(binary.LittleEndian.Uint32(rec[28:])),
		}
		if f.bits == 32 {
			e.start |= uint32(binary.LittleEndian.Uint16(rec[20:])) << 16
		}
		if len(long) > 0 {
			e.names = append([]string{string(utf16.Decode(long))}, e.names...)
		}
		long = nil
		out = append(out, e)
	}
	return out, nil
}

// longPiece returns the up to 13 characters of one record of a long name.
func longPiece(rec []byte) []uint16 {
	var u []uint16
	for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := span[0]; i < span[1]; i += 2 {
			c := binary.LittleEndian.Uint16(rec[i:])
			if c == 0 || c == 0xffff {
				return u
			}
			u = append(u, c)
		}
	}
	return u
}

func shortName(rec []byte) string {
	base, ext := strings.TrimRight(string(rec[:8]), " "), strings.TrimRight(string(rec[8:11]), " ")
	if ext != "" {
		return base + "." + ext
	}
	return base
}

func (f *fat) read(file entry) ([]byte, error) {
	if file.size == 0 {
		return []byte{}, nil
	}
	b, err := f.chain(file.start, file.size)
	if err == nil && int64(len(b)) < file.size {
		err = fmt.Errorf("FAT: the file has %d bytes by its entry and %d by its chain of clusters", file.size, len(b))
	}
	return b, err
}
