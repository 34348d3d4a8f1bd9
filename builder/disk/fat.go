package disk

import (
	"encoding/binary"
	"math"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	fatEntry        = 4
	fatEnd          = 0x0fffffff // end of a file's chain; as FAT[1] also "cleanly unmounted"
	minReserved     = 32         // sectors before the first FAT, as every formatter leaves
	backupBoot      = 6          // sector of the copy of the boot sector
	minFAT32Cluster = 65525      // fewer clusters and drivers take the volume for FAT16
	maxFile         = math.MaxUint32
	// alignment puts large files on the cluster bounds of qcow2 and the grains of
	// VMDK: a layer's bytes then fill whole clusters, which can be cloned rather
	// than copied and are the same in every version that has the layer.
	alignment = 64 << 10
)

// geometry is how a FAT32 volume is divided.
type geometry struct {
	sectors       uint32
	clusterSize   int64
	reserved      uint32 // sectors before the first FAT
	fatSectors    uint32 // of one FAT
	clusters      uint32 // of data; the first has number 2
	firstDataByte int64
}

func (g geometry) offset(cluster uint32) int64 {
	return g.firstDataByte + int64(cluster-2)*g.clusterSize
}

func (g geometry) clustersFor(size int64) uint32 {
	return uint32((size + g.clusterSize - 1) / g.clusterSize)
}

// newGeometry takes the largest cluster of up to 32 KiB that leaves the volume a
// FAT32: the files are large, and large clusters make short chains.
func newGeometry(size int64) (geometry, error) {
	g := geometry{sectors: uint32(size / sectorSize)}
	for g.clusterSize = 32 << 10; g.clusterSize >= sectorSize; g.clusterSize /= 2 {
		g.fatSectors = uint32((size/g.clusterSize+2)*fatEntry+sectorSize-1) / sectorSize
		g.firstDataByte = roundUp(int64(minReserved+2*g.fatSectors)*sectorSize, alignment)
		g.reserved = uint32(g.firstDataByte/sectorSize) - 2*g.fatSectors
		if data := size - g.firstDataByte; data > 0 {
			g.clusters = uint32(data / g.clusterSize)
		}
		if g.clusters >= minFAT32Cluster {
			return g, nil
		}
	}
	return g, fault.New(fault.Input, "a boot partition of %d MiB is too small for FAT32", size/mib).
		WithMend("Make it at least 64 MiB.")
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// node is a file or a directory of the volume.
type node struct {
	name     string
	file     *File   // nil for a directory
	children []*node // of a directory, by name
	parent   *node
	entries  []dirEntry // of a directory
	cluster  uint32     // the first one; 0 for an empty file
	count    uint32     // how many, all in a row
}

// planFAT lays out the file system; offsets are relative to the partition.
func planFAT(in LayoutInput) ([]Extent, error) {
	g, err := newGeometry(in.ESPSize)
	if err != nil {
		return nil, err
	}
	root, err := buildDirs(in.Files)
	if err != nil {
		return nil, err
	}
	label, err := volumeLabel(in.Label)
	if err != nil {
		return nil, err
	}
	all, err := allocate(g, root)
	if err != nil {
		return nil, err
	}
	next := uint32(2)
	used := uint32(0)
	for _, n := range all {
		next = max(next, n.cluster+n.count)
		used += n.count
	}
	stamp := dosTime(in.Date)
	boot := bootSector(g, label, binary.LittleEndian.Uint32(in.Seed[:]))
	info := fsInfo(g.clusters-used, next)
	fat := fileTable(all, next)
	extents := []Extent{
		bytesAt(0, append(boot, info...)),
		bytesAt(backupBoot*sectorSize, append(append([]byte(nil), boot...), info...)),
		bytesAt(int64(g.reserved)*sectorSize, fat),
		bytesAt(int64(g.reserved+g.fatSectors)*sectorSize, fat),
	}
	for _, n := range all {
		switch {
		case n.file == nil:
			extents = append(extents, bytesAt(g.offset(n.cluster), dirBytes(n, label, stamp)))
		case n.file.Size > 0:
			extents = append(extents, Extent{Offset: g.offset(n.cluster), Length: n.file.Size, Src: n.file.Src})
		}
	}
	return extents, nil
}

// buildDirs makes the directory tree and names every entry of it.
func buildDirs(files []File) (*node, error) {
	root := &node{}
	dirs := map[string]*node{"": root}
	var dirFor func(p string) *node
	dirFor = func(p string) *node {
		if d, ok := dirs[p]; ok {
			return d
		}
		up, base := path.Split(p)
		parent := dirFor(strings.TrimSuffix(up, "/"))
		d := &node{name: base, parent: parent}
		parent.children = append(parent.children, d)
		dirs[p] = d
		return d
	}
	sorted := append([]File(nil), files...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Path < sorted[j].Path })
	for i := range sorted {
		f := &sorted[i]
		p := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if p == "" || f.Size < 0 || f.Size > 0 && f.Src == nil {
			return nil, fault.New(fault.Internal, "boot partition: file %q has no name or no content", f.Path)
		}
		if f.Size > maxFile {
			return nil, fault.New(fault.Input, "boot partition: %s has %d bytes; a file on FAT32 can have %d", f.Path, f.Size, int64(maxFile)).
				WithMend("Split the role's packages, so that no layer grows over 4 GiB.")
		}
		up, base := path.Split(p)
		dir := dirFor(strings.TrimSuffix(up, "/"))
		dir.children = append(dir.children, &node{name: base, file: f, parent: dir})
	}
	for p, d := range dirs {
		sort.Slice(d.children, func(i, j int) bool { return d.children[i].name < d.children[j].name })
		var err error
		if d.entries, err = nameEntries(p, d.children); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// allocate gives every node its clusters: directories first, then small files
// side by side, then large ones, each on an aligned place. It returns the nodes
// in that order.
func allocate(g geometry, root *node) ([]*node, error) {
	var dirs, small, large []*node
	var walk func(*node)
	walk = func(n *node) {
		switch {
		case n.file == nil:
			dirs = append(dirs, n)
			for _, c := range n.children {
				walk(c)
			}
		case n.file.Size < alignment:
			small = append(small, n)
		default:
			large = append(large, n)
		}
	}
	walk(root)
	next := uint64(2)
	all := append(append(dirs, small...), large...)
	for _, n := range all {
		size := int64(len(n.entries)) * dirEntrySize
		if n.file == nil && n.parent == nil {
			size += dirEntrySize // the volume label
		} else if n.file == nil {
			size += 2 * dirEntrySize // "." and ".."
		}
		if n.file != nil {
			size = n.file.Size
			if size >= alignment {
				step := uint64(max(alignment/g.clusterSize, 1))
				next = 2 + (next-2+step-1)/step*step // cluster 2 is aligned, see newGeometry
			}
		}
		n.count = g.clustersFor(size)
		if n.count == 0 && n.file == nil {
			n.count = 1
		}
		if n.count > 0 {
			n.cluster = uint32(next)
		}
		next += uint64(n.count)
		if next > uint64(g.clusters)+2 {
			return nil, fault.New(fault.Input, "boot partition: the files need more than its %d MiB", int64(g.sectors)*sectorSize/mib).
				WithMend("Make the boot partition larger, or the role smaller.")
		}
	}
	return all, nil
}

// fileTable is the used part of the FAT: a chain of consecutive clusters for each node.
func fileTable(all []*node, next uint32) []byte {
	fat := make([]byte, 0, int64(next)*fatEntry)
	fat = binary.LittleEndian.AppendUint32(fat, 0x0ffffff8) // the media byte of a hard disk
	fat = binary.LittleEndian.AppendUint32(fat, fatEnd)
	fat = fat[:int64(next)*fatEntry]
	for _, n := range all {
		for i := range n.count {
			to := n.cluster + i + 1
			if i == n.count-1 {
				to = fatEnd
			}
			binary.LittleEndian.PutUint32(fat[int64(n.cluster+i)*fatEntry:], to)
		}
	}
	return fat
}

// bootSector is sector 0 of the volume. OEM name and the halting jump are what
// fatgen103 recommends for the widest acceptance; nothing boots from here.
func bootSector(g geometry, label [11]byte, volumeID uint32) []byte {
	b := make([]byte, sectorSize)
	copy(b, "\xeb\x58\x90MSWIN4.1")
	binary.LittleEndian.PutUint16(b[11:], sectorSize)
	b[13] = byte(g.clusterSize / sectorSize)
	binary.LittleEndian.PutUint16(b[14:], uint16(g.reserved))
	b[16] = 2    // FATs
	b[21] = 0xf8 // hard disk
	binary.LittleEndian.PutUint16(b[24:], 63)
	binary.LittleEndian.PutUint16(b[26:], 255)
	binary.LittleEndian.PutUint32(b[28:], espStart/sectorSize)
	binary.LittleEndian.PutUint32(b[32:], g.sectors)
	binary.LittleEndian.PutUint32(b[36:], g.fatSectors)
	binary.LittleEndian.PutUint32(b[44:], 2) // the root directory's cluster
	binary.LittleEndian.PutUint16(b[48:], 1) // FSInfo's sector
	binary.LittleEndian.PutUint16(b[50:], backupBoot)
	b[64] = 0x80 // BIOS drive
	b[66] = 0x29 // the next three fields are there
	binary.LittleEndian.PutUint32(b[67:], volumeID)
	copy(b[71:], label[:])
	copy(b[82:], "FAT32   ")
	copy(b[90:], "\xf4\xeb\xfd") // hlt; jmp to it
	b[510], b[511] = 0x55, 0xaa
	return b
}

// fsInfo holds hints for whoever writes to the volume next.
func fsInfo(free, next uint32) []byte {
	b := make([]byte, sectorSize)
	binary.LittleEndian.PutUint32(b, 0x41615252)
	binary.LittleEndian.PutUint32(b[484:], 0x61417272)
	binary.LittleEndian.PutUint32(b[488:], free)
	binary.LittleEndian.PutUint32(b[492:], next)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// dosStamp is a time as FAT keeps it: two-second steps since 1980.
type dosStamp struct{ date, time uint16 }

func dosTime(t time.Time) dosStamp {
	t = t.UTC()
	if t.Year() < 1980 {
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	if t.Year() > 2107 {
		t = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
	}
	return dosStamp{
		date: uint16((t.Year()-1980)<<9 | int(t.Month())<<5 | t.Day()),
		time: uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2),
	}
}
