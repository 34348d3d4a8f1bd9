package bootpart

import (
	"bytes"
	"encoding/binary"
	"io"
	"path"
	"sort"
	"strings"
	"unicode/utf16"

	"github.com/slipwayhq/slipway/builder/disk/fatname"
)

const (
	sector   = 512
	entry    = 4          // bytes of the table for a cluster
	mask     = 0x0fffffff // the upper four bits are not ours
	chainEnd = 0x0ffffff8 // this and above ends a chain
	badBlock = 0x0ffffff7
	attrLong = fatname.AttrLong
	attrDir  = 0x10
	attrVol  = 0x08
	slotFree = 0xe5

	maxTable = 64 << 20
	maxDir   = 4 << 20
	maxFiles = 10000
)

// Volume is the file system. It is for one user at a time.
type Volume struct {
	dev      Device
	cluster  int64 // bytes of a cluster
	data     int64 // offset of cluster 2
	tables   []int64
	info     int64 // offset of FSInfo
	table    []uint32
	root     uint32
	entries  map[string]*Entry // by folded path; "" is the root
	owner    []bool            // clusters that belong to something
	leftover leftovers
	differs  bool // the copy of the table is not like the table
	tidied   bool
}

// leftovers are what power cuts left behind.
type leftovers struct {
	slots  []int64  // of long names without their short entry
	stale  []int64  // behind the end of their directory
	twins  []*Entry // entries whose clusters belong to a finished file
	tails  []uint32 // last clusters of files whose chain goes on
	orphan bool     // clusters that belong to nobody
}

// Entry is a file or directory.
type Entry struct {
	Path string
	Size int64
	Dir  bool

	start uint32
	chain []uint32 // as many clusters as the size needs; all of them for a directory
	slots []int64  // offsets of its slots, the short one last
}

// Open reads the table and all directories.
func Open(dev Device, size int64) (*Volume, error) {
	b := make([]byte, sector)
	if _, err := dev.ReadAt(b, 0); err != nil {
		return nil, bad("%w", err)
	}
	le := binary.LittleEndian
	perCluster, reserved, fats := int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	sectors, perTable := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || le.Uint16(b[11:]) != sector || le.Uint16(b[22:]) != 0:
		return nil, bad("it holds no FAT32 file system with sectors of %d bytes", sector)
	case perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved < 2 || fats < 1 || fats > 2 || perTable == 0 || perTable*sector > maxTable,
		le.Uint16(b[40:])&0x80 != 0:
		return nil, bad("its FAT32 boot sector makes no sense")
	case sectors*sector > size:
		return nil, bad("its file system of %d bytes is larger than the partition of %d", sectors*sector, size)
	}
	v := &Volume{
		dev: dev, cluster: perCluster * sector, data: (reserved + fats*perTable) * sector, root: le.Uint32(b[44:]),
		entries: map[string]*Entry{}, info: int64(le.Uint16(b[48:])) * sector,
	}
	count := (sectors - reserved - fats*perTable) / perCluster
	if count <= 0 || (count+2)*entry > perTable*sector || v.info <= 0 || v.info >= reserved*sector {
		return nil, bad("%d clusters do not fit its table", count)
	}
	for i := range fats {
		v.tables = append(v.tables, (reserved+i*perTable)*sector)
	}
	raw := make([]byte, perTable*sector)
	if _, err := dev.ReadAt(raw, v.tables[0]); err != nil {
		return nil, bad("reading its table: %w", err)
	}
	v.table, v.owner = make([]uint32, count+2), make([]bool, count+2)
	for i := range v.table {
		v.table[i] = le.Uint32(raw[entry*i:])
	}
	if err := v.compareTables(raw); err != nil {
		return nil, err
	}
	return v, v.look()
}

// compareTables notes whether the second table is like the first.
func (v *Volume) compareTables(first []byte) error {
	for _, at := range v.tables[1:] {
		second := make([]byte, len(first))
		if _, err := v.dev.ReadAt(second, at); err != nil {
			return bad("reading its table's copy: %w", err)
		}
		v.differs = !bytes.Equal(first, second)
	}
	return nil
}

// look walks all directories and finds out what belongs to whom.
func (v *Volume) look() error {
	clear(v.owner)
	v.entries, v.leftover = map[string]*Entry{}, leftovers{}
	root := &Entry{Dir: true, start: v.root}
	v.entries[""] = root
	if err := v.walk(root); err != nil {
		return err
	}
	for _, e := range v.sorted() {
		if e.Dir || e.Size == 0 && e.start == 0 {
			continue
		}
		if err := v.claim(e); err != nil {
			return err
		}
	}
	for i := 2; i < len(v.table); i++ {
		if n := v.table[i] & mask; n != 0 && n != badBlock && !v.owner[i] {
			v.leftover.orphan = true
		}
	}
	return nil
}

// claim follows a file's chain as far as its size needs.
func (v *Volume) claim(e *Entry) error {
	need := (e.Size + v.cluster - 1) / v.cluster
	c := e.start
	if v.valid(c) && v.owner[c] && within(e.Path, Staging) {
		v.leftover.twins = append(v.leftover.twins, e)
		return nil
	}
	for range need {
		if !v.valid(c) || v.owner[c] {
			return bad("/%s: its chain of clusters is broken or leads into another file's", e.Path)
		}
		e.chain = append(e.chain, c)
		v.owner[c] = true
		c = v.table[c] & mask
	}
	if need > 0 && c < chainEnd {
		v.leftover.tails = append(v.leftover.tails, e.chain[need-1])
	}
	// An empty file that has clusters is odd and not ours; it keeps them.
	for ; need == 0 && v.valid(c) && !v.owner[c]; c = v.table[c] & mask {
		e.chain = append(e.chain, c)
		v.owner[c] = true
	}
	return nil
}

func within(name, dir string) bool { return strings.HasPrefix(fold(name), fold(dir)+"/") }

func fold(name string) string { return strings.ToUpper(strings.Trim(name, "/")) }

func (v *Volume) valid(c uint32) bool { return c >= 2 && c < uint32(len(v.table)) }

func (v *Volume) at(c uint32) int64 { return v.data + int64(c-2)*v.cluster }

// sorted is all entries, those in Staging last.
func (v *Volume) sorted() []*Entry {
	out := make([]*Entry, 0, len(v.entries))
	for _, e := range v.entries {
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool {
		if a, b := within(out[i].Path, Staging), within(out[j].Path, Staging); a != b {
			return b
		}
		return out[i].Path < out[j].Path
	})
	return out
}

// walk reads a directory and those below it.
func (v *Volume) walk(dir *Entry) error {
	b, err := v.readDir(dir)
	if err != nil {
		return err
	}
	var long []uint16
	var slots []int64
	var sum, ordinal byte
	abandon := func() {
		v.leftover.slots = append(v.leftover.slots, slots...)
		long, slots = nil, nil
	}
	for i := 0; i+fatname.Slot <= len(b) && b[i] != 0; i += fatname.Slot {
		rec := b[i : i+fatname.Slot]
		at := v.at(dir.chain[int64(i)/v.cluster]) + int64(i)%v.cluster
		if rec[0] == slotFree {
			abandon()
			continue
		}
		if rec[11]&0x3f == attrLong {
			first := rec[0]&0x40 != 0 // the last piece stands first
			if first || rec[13] != sum || rec[0] != ordinal-1 {
				abandon()
			}
			sum, ordinal = rec[13], rec[0]&0x3f
			if !first && len(slots) == 0 {
				v.leftover.slots = append(v.leftover.slots, at)
				continue
			}
			if long = append(fatname.Piece(rec), long...); len(long) > 260 {
				return bad("a name in /%s makes no sense", dir.Path)
			}
			slots = append(slots, at)
			continue
		}
		name := fatname.Display(rec)
		if len(slots) > 0 && (ordinal != 1 || sum != fatname.Sum([11]byte(rec[:11]))) {
			abandon()
		}
		if len(long) > 0 {
			name = string(utf16.Decode(long))
		}
		own := append(slots, at)
		long, slots = nil, nil
		if rec[11]&attrVol != 0 || rec[0] == '.' {
			continue
		}
		if err := v.add(dir, name, rec, own); err != nil {
			return err
		}
	}
	abandon()
	v.beyond(dir, b)
	return nil
}

// beyond notes what stands behind a directory's end: pieces of a name whose first
// one did not reach the disk.
func (v *Volume) beyond(dir *Entry, b []byte) {
	ended := false
	for i := 0; i+fatname.Slot <= len(b); i += fatname.Slot {
		ended = ended || b[i] == 0
		if ended && bytes.Trim(b[i:i+fatname.Slot], "\x00") != nil {
			v.leftover.stale = append(v.leftover.stale, v.at(dir.chain[int64(i)/v.cluster])+int64(i)%v.cluster)
		}
	}
}

func (v *Volume) add(dir *Entry, name string, rec []byte, slots []int64) error {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return bad("a name in /%s makes no sense: %q", dir.Path, name)
	}
	le := binary.LittleEndian
	e := &Entry{
		Path: path.Join(dir.Path, name), Size: int64(le.Uint32(rec[28:])), Dir: rec[11]&attrDir != 0, slots: slots,
		start: (uint32(le.Uint16(rec[20:]))<<16 | uint32(le.Uint16(rec[26:]))) & mask,
	}
	if len(v.entries) >= maxFiles || v.entries[fold(e.Path)] != nil {
		return bad("/%s: it is there twice, or there are more than %d files", e.Path, maxFiles)
	}
	v.entries[fold(e.Path)] = e
	if !e.Dir {
		return nil
	}
	e.Size = 0
	return v.walk(e)
}

// readDir reads a directory to the end of its chain.
func (v *Volume) readDir(dir *Entry) ([]byte, error) {
	var out []byte
	dir.chain = nil
	for c := dir.start; c < chainEnd; c = v.table[c] & mask {
		if !v.valid(c) || v.owner[c] || len(out) >= maxDir {
			return nil, bad("/%s: the directory's chain of clusters is broken or has no end", dir.Path)
		}
		v.owner[c] = true
		dir.chain = append(dir.chain, c)
		buf := make([]byte, v.cluster)
		if _, err := v.dev.ReadAt(buf, v.at(c)); err != nil {
			return nil, bad("/%s: %w", dir.Path, err)
		}
		out = append(out, buf...)
	}
	return out, nil
}

// Stat finds a file or directory.
func (v *Volume) Stat(name string) (Entry, bool) {
	e := v.entries[fold(name)]
	if e == nil || v.isTwin(e) {
		return Entry{}, false
	}
	return *e, true
}

func (v *Volume) isTwin(e *Entry) bool {
	for _, t := range v.leftover.twins {
		if t == e {
			return true
		}
	}
	return false
}

// List is what a directory holds, by name.
func (v *Volume) List(dir string) []Entry {
	var out []Entry
	for _, e := range v.sorted() {
		if e.Path != "" && fold(parent(e.Path)) == fold(dir) && !v.isTwin(e) {
			out = append(out, *e)
		}
	}
	return out
}

// parent is the directory of a path; "" is the root.
func parent(name string) string {
	dir, _ := path.Split(strings.Trim(name, "/"))
	return strings.TrimSuffix(dir, "/")
}

// Free is how many bytes new files can have.
func (v *Volume) Free() (free int64) {
	for i := 2; i < len(v.owner); i++ {
		if !v.owner[i] && v.table[i]&mask != badBlock {
			free += v.cluster
		}
	}
	return free
}

// Reader reads a file where it stands. It is good until the file is changed.
func (v *Volume) Reader(name string) (*io.SectionReader, error) {
	e := v.entries[fold(name)]
	if e == nil || e.Dir || v.isTwin(e) {
		return nil, bad("there is no file /%s", name)
	}
	return io.NewSectionReader(&content{v, e.chain}, 0, e.Size), nil
}

// ReadFile reads a small file.
func (v *Volume) ReadFile(name string, most int64) ([]byte, error) {
	r, err := v.Reader(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > most {
		return nil, bad("/%s has %d bytes, more than %d", name, r.Size(), most)
	}
	return io.ReadAll(r)
}

// content is a file's clusters, one after the other.
type content struct {
	v     *Volume
	chain []uint32
}

func (c *content) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		i := off / c.v.cluster
		if i >= int64(len(c.chain)) {
			return n, io.EOF
		}
		// A run of neighbours is one read.
		run := i + 1
		for run < int64(len(c.chain)) && c.chain[run] == c.chain[run-1]+1 && (run-i)*c.v.cluster < int64(len(p)-n)+c.v.cluster {
			run++
		}
		within := off % c.v.cluster
		piece := p[n:min(len(p), n+int((run-i)*c.v.cluster-within))]
		got, err := c.v.dev.ReadAt(piece, c.v.at(c.chain[i])+within)
		n, off = n+got, off+int64(got)
		if got < len(piece) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	return n, nil
}
