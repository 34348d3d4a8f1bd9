package inspect

import (
	"encoding/binary"
	"io"
	"path"
	"sort"
	"strings"
	"unicode/utf16"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/disk/fatname"
	"github.com/slipwayhq/slipway/internal/fault"
)

// fat reads a FAT32 file system. It is our own since go-diskfs's reader follows a
// cyclic chain of clusters for ever and takes bytes that are not there for zeros;
// and since a layer must be read where it stands, not copied out.
type fat struct {
	r        io.ReaderAt
	cluster  int64    // bytes of a cluster
	data     int64    // offset of cluster 2
	table    []uint32 // the first FAT
	root     uint32
	clusters uint32 // how many there are
}

// file is a regular file of the boot partition.
type file struct {
	path  string
	size  int64
	start uint32
}

const (
	maxFAT   = 64 << 20 // bytes of one table: enough for 64 GiB in clusters of 4 KiB
	maxDir   = 4 << 20  // bytes of one directory
	maxFiles = 10000
)

func badFAT(format string, args ...any) *fault.Error {
	return fault.New(fault.Integrity, "boot partition: "+format, args...)
}

// openFAT reads the boot sector and the table ("FAT32 File System
// Specification" 1.03, "Boot Sector and BPB Structure").
func openFAT(r io.ReaderAt, size int64) (*fat, error) {
	b := make([]byte, sector)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, badFAT("%w", err)
	}
	le := binary.LittleEndian
	bytesPerSector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats := int64(le.Uint16(b[14:])), int64(b[16])
	sectors, perFAT := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[22:]) != 0:
		return nil, badFAT("it holds no FAT32 file system")
	case bytesPerSector < 512 || bytesPerSector > 4096 || bytesPerSector&(bytesPerSector-1) != 0,
		perCluster == 0 || perCluster&(perCluster-1) != 0, reserved == 0, fats < 1 || fats > 2, perFAT == 0:
		return nil, badFAT("its FAT32 boot sector makes no sense")
	case sectors*bytesPerSector > size:
		return nil, badFAT("its file system of %d bytes is larger than the partition of %d", sectors*bytesPerSector, size)
	case perFAT*bytesPerSector > maxFAT:
		return nil, badFAT("a table of %d bytes is larger than this reader allows", perFAT*bytesPerSector)
	}
	f := &fat{
		r: r, cluster: perCluster * bytesPerSector, root: le.Uint32(b[44:]),
		data: (reserved + fats*perFAT) * bytesPerSector,
	}
	count := (sectors - reserved - fats*perFAT) / perCluster
	raw := make([]byte, perFAT*bytesPerSector)
	if count <= 0 || count+2 > int64(len(raw)/4) {
		return nil, badFAT("%d clusters do not fit its table of %d bytes", count, len(raw))
	}
	if _, err := r.ReadAt(raw, reserved*bytesPerSector); err != nil {
		return nil, badFAT("reading its table: %w", err)
	}
	f.clusters = uint32(count)
	f.table = make([]uint32, count+2)
	for i := range f.table {
		f.table[i] = le.Uint32(raw[4*i:]) & 0x0fffffff
	}
	return f, nil
}

// chain follows the clusters of a file or directory as far as length bytes need.
func (f *fat) chain(what string, start uint32, length int64) ([]disk.Extent, error) {
	var out []disk.Extent
	c := start
	for done := int64(0); done < length; done += f.cluster {
		if c < 2 || c-2 >= f.clusters {
			return nil, badFAT("%s: after %d of %d bytes its chain leads to cluster %d, which does not exist", what, done, length, c)
		}
		at := f.data + int64(c-2)*f.cluster
		n := min(f.cluster, length-done)
		if last := len(out) - 1; last >= 0 && out[last].SrcOff+out[last].Length == at {
			out[last].Length += n
		} else {
			out = append(out, disk.Extent{Offset: done, Length: n, Src: f.r, SrcOff: at})
		}
		c = f.table[c]
	}
	return out, nil
}

// open gives random access to a file where it stands.
func (f *fat) open(e file) (io.ReaderAt, error) {
	extents, err := f.chain(e.path, e.start, e.size)
	if err != nil {
		return nil, err
	}
	return disk.NewImage(e.size, extents)
}

// files lists every regular file, sorted by path.
func (f *fat) files() ([]file, error) {
	var out []file
	if err := f.walk("", f.root, map[uint32]bool{}, &out); err != nil {
		return nil, err
	}
	sort.Slice(out, func(i, j int) bool { return out[i].path < out[j].path })
	return out, nil
}

// walk adds the files below a directory. Each directory is entered once: two that
// share a cluster would let a few bytes unfold into endless work.
func (f *fat) walk(dir string, start uint32, seen map[uint32]bool, out *[]file) error {
	if seen[start] || len(seen) > maxFiles {
		return badFAT("/%s: the directories are entangled, or more than %d", dir, maxFiles)
	}
	seen[start] = true
	b, err := f.directory("/"+dir, start)
	if err != nil {
		return err
	}
	var long []uint16
	for i := 0; i+32 <= len(b) && b[i] != 0; i += 32 {
		rec := b[i : i+32]
		attr := rec[11]
		if rec[0] != 0xe5 && attr == 0x0f {
			if rec[0]&0x40 != 0 { // the last piece stands first
				long = nil
			}
			if len(long) < 260 {
				long = append(fatname.Piece(rec), long...)
			}
			continue
		}
		name := fatname.Display(rec)
		if len(long) > 0 {
			name = string(utf16.Decode(long))
		}
		long = nil
		if rec[0] == 0xe5 || attr&0x08 != 0 || rec[0] == '.' {
			continue // deleted, the label, and "." and ".."
		}
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return badFAT("a name in /%s makes no sense: %q", dir, name)
		}
		le := binary.LittleEndian
		first := uint32(le.Uint16(rec[20:]))<<16 | uint32(le.Uint16(rec[26:]))
		full := path.Join(dir, name)
		if attr&0x10 != 0 {
			if err := f.walk(full, first, seen, out); err != nil {
				return err
			}
			continue
		}
		if len(*out) == maxFiles {
			return badFAT("more than %d files", maxFiles)
		}
		*out = append(*out, file{full, int64(le.Uint32(rec[28:])), first})
	}
	return nil
}

// directory reads a directory's clusters up to the end of their chain.
func (f *fat) directory(name string, start uint32) ([]byte, error) {
	var out []byte
	buf := make([]byte, f.cluster)
	for c := start; ; {
		if c < 2 || c-2 >= f.clusters {
			return nil, badFAT("%s: its chain leads to cluster %d, which does not exist", name, c)
		}
		if len(out) >= maxDir {
			return nil, badFAT("%s: the directory has no end", name)
		}
		if _, err := f.r.ReadAt(buf, f.data+int64(c-2)*f.cluster); err != nil {
			return nil, badFAT("%s: %w", name, err)
		}
		out = append(out, buf...)
		if c = f.table[c]; c >= 0x0ffffff8 {
			return out, nil
		}
	}
}
