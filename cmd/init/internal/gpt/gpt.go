// Package gpt reads and edits a GUID partition table in place, so that a power
// cut at any moment leaves one valid copy of it.
//
// It follows the UEFI Specification 2.10, section 5.3 ("GUID Partition Table
// (GPT) Disk Layout"): a primary copy at the disk's start, a backup at its end,
// each a header with a checksum over itself and over its array of entries.
// What the image was written with is taken for granted and anything else
// refused: sectors of 512 bytes, entries of 128 bytes. The protective MBR is
// left alone, since sector 0 also holds boot code.
package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

const (
	SectorSize = 512
	// Align is the granularity of partitions in sectors: 1 MiB.
	Align = 2048

	signature  = "EFI PART"
	revision   = 0x00010000
	headerSize = 92
	entrySize  = 128
	maxEntries = 1024 // 128 is usual; this bounds what a damaged header can ask for
	nameUnits  = 36
)

// GUID is in the byte order that the disk has: the first three groups little-endian.
type GUID [16]byte

// LinuxData is the type of a partition with a Linux file system.
var LinuxData = mustGUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

// ParseGUID reads the usual notation, in any case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	var a uint32
	var b, c uint16
	var d [8]byte
	n, err := fmt.Sscanf(s, "%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", &a, &b, &c,
		&d[0], &d[1], &d[2], &d[3], &d[4], &d[5], &d[6], &d[7])
	if err != nil || n != 11 || len(s) != 36 {
		return g, fmt.Errorf("%q is not a GUID", s)
	}
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	copy(g[8:], d[:])
	return g, nil
}

func mustGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// String is the usual notation in lower case.
func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[0:]),
		binary.LittleEndian.Uint16(g[4:]), binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:16])
}

// Entry is one partition. A zero Type means that the slot is free.
type Entry struct {
	Type, ID    GUID
	First, Last uint64 // sectors, both included
	Attributes  uint64
	Name        string // at most 36 UTF-16 units
}

// Used says whether the slot holds a partition.
func (e Entry) Used() bool { return e.Type != GUID{} }

// Table is a partition table of a disk.
type Table struct {
	DiskID  GUID
	Entries []Entry // Entries[i] is partition i+1
	sectors uint64  // of the disk, now
	stale   string  // why the copies on the disk must be written again, if they must
}

// Read reads the table of a disk of size bytes: the primary copy or, if that is
// damaged, the backup at the disk's end.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	sectors := uint64(size / SectorSize)
	if sectors < 2*Align {
		return nil, fmt.Errorf("a disk of %d bytes is too small for a partition table", size)
	}
	primary, perr := readCopy(r, 1, sectors)
	if perr == nil {
		backup, berr := readCopy(r, sectors-1, sectors)
		switch {
		case primary.alternate != sectors-1:
			primary.table.stale = "the disk has grown"
		case berr != nil:
			primary.table.stale = "its backup copy is damaged: " + berr.Error()
		case !bytes.Equal(primary.raw, backup.raw):
			primary.table.stale = "its backup copy is of another time"
		}
		return primary.table, nil
	}
	backup, berr := readCopy(r, sectors-1, sectors)
	if berr != nil {
		return nil, fmt.Errorf("both copies of the partition table are damaged: %w", errors.Join(perr, berr))
	}
	backup.table.stale = "its primary copy is damaged: " + perr.Error()
	return backup.table, nil
}

type tableCopy struct {
	table     *Table
	alternate uint64
	raw       []byte // of the entries
}

func readCopy(r io.ReaderAt, lba, sectors uint64) (*tableCopy, error) {
	h := make([]byte, SectorSize)
	if _, err := r.ReadAt(h, int64(lba)*SectorSize); err != nil {
		return nil, fmt.Errorf("sector %d: %w", lba, err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != signature {
		return nil, fmt.Errorf("sector %d holds no GPT header", lba)
	}
	if n := le.Uint32(h[12:]); n != headerSize {
		return nil, fmt.Errorf("sector %d: GPT header of %d bytes, want %d", lba, n, headerSize)
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:headerSize]) != sum {
		return nil, fmt.Errorf("sector %d: GPT header has a wrong checksum", lba)
	}
	if own := le.Uint64(h[24:]); own != lba {
		return nil, fmt.Errorf("sector %d: GPT header says that it belongs to sector %d", lba, own)
	}
	count, size, at := le.Uint32(h[80:]), le.Uint32(h[84:]), le.Uint64(h[72:])
	if size != entrySize || count == 0 || count > maxEntries || at < 2 || at >= sectors {
		return nil, fmt.Errorf("sector %d: GPT of %d entries of %d bytes at sector %d is not one of ours", lba, count, size, at)
	}
	raw := make([]byte, count*entrySize)
	if _, err := r.ReadAt(raw, int64(at)*SectorSize); err != nil {
		return nil, fmt.Errorf("GPT entries at sector %d: %w", at, err)
	}
	if crc32.ChecksumIEEE(raw) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("GPT entries at sector %d have a wrong checksum", at)
	}
	t := &Table{sectors: sectors, Entries: make([]Entry, count)}
	copy(t.DiskID[:], h[56:72])
	for i := range t.Entries {
		t.Entries[i] = decodeEntry(raw[i*entrySize:])
		if e := t.Entries[i]; e.Used() && (e.First > e.Last || e.Last >= sectors) {
			return nil, fmt.Errorf("partition %d spans sectors %d to %d, the disk has %d", i+1, e.First, e.Last, sectors)
		}
	}
	return &tableCopy{table: t, alternate: le.Uint64(h[32:]), raw: raw}, nil
}

func decodeEntry(b []byte) Entry {
	var e Entry
	copy(e.Type[:], b[0:16])
	copy(e.ID[:], b[16:32])
	le := binary.LittleEndian
	e.First, e.Last, e.Attributes = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:])
	units := make([]uint16, 0, nameUnits)
	for i := range nameUnits {
		u := le.Uint16(b[56+2*i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	e.Name = string(utf16.Decode(units))
	return e
}

func encodeEntry(b []byte, e Entry) {
	copy(b[0:16], e.Type[:])
	copy(b[16:32], e.ID[:])
	le := binary.LittleEndian
	le.PutUint64(b[32:], e.First)
	le.PutUint64(b[40:], e.Last)
	le.PutUint64(b[48:], e.Attributes)
	for i, u := range utf16.Encode([]rune(e.Name)) {
		if i == nameUnits {
			break
		}
		le.PutUint16(b[56+2*i:], u)
	}
}

// Stale says why the copies on the disk differ from what Write would write,
// though nobody edited the table; empty if they do not.
func (t *Table) Stale() string { return t.stale }

// arraySectors is the room that the entries take.
func (t *Table) arraySectors() uint64 {
	return (uint64(len(t.Entries))*entrySize + SectorSize - 1) / SectorSize
}

// Usable returns the first and the last sector that partitions may have.
func (t *Table) Usable() (first, last uint64) {
	return 2 + t.arraySectors(), t.sectors - 2 - t.arraySectors()
}

// Room returns the widest aligned run of sectors from first on, up to the next
// partition or the disk's end; ignoring is the index of an entry to look past.
// It returns ok false if not even one aligned unit is free.
func (t *Table) Room(first uint64, ignoring int) (last uint64, ok bool) {
	_, end := t.Usable()
	for i, e := range t.Entries {
		if i == ignoring || !e.Used() {
			continue
		}
		if e.First <= first && first <= e.Last {
			return 0, false
		}
		if e.First > first && e.First-1 < end {
			end = e.First - 1
		}
	}
	end = (end + 1) / Align * Align
	if end < first+Align {
		return 0, false
	}
	return end - 1, true
}

// AfterLast is the first aligned sector behind all partitions.
func (t *Table) AfterLast() uint64 {
	first, _ := t.Usable()
	for _, e := range t.Entries {
		if e.Used() && e.Last >= first {
			first = e.Last + 1
		}
	}
	return (first + Align - 1) / Align * Align
}

// Find returns the index of the partition with the given GUID, or -1.
func (t *Table) Find(id GUID) int {
	for i, e := range t.Entries {
		if e.Used() && e.ID == id {
			return i
		}
	}
	return -1
}

// Named returns the index of the partition that has one of the names, or -1.
func (t *Table) Named(names ...string) int {
	for i, e := range t.Entries {
		for _, n := range names {
			if e.Used() && strings.EqualFold(e.Name, n) {
				return i
			}
		}
	}
	return -1
}

// File is a disk that can be written.
type File interface {
	io.WriterAt
	Sync() error
}

// Write writes both copies. The backup comes first and is flushed before the
// primary is touched: until then the old primary counts, and while the primary
// is half written the backup does (Linux looks there if booted with "gpt").
func (t *Table) Write(w File) error {
	raw := make([]byte, len(t.Entries)*entrySize)
	for i, e := range t.Entries {
		if e.Used() {
			encodeEntry(raw[i*entrySize:], e)
		}
	}
	last := t.sectors - 1
	for _, c := range []struct{ own, other, entries uint64 }{
		{last, 1, last - t.arraySectors()},
		{1, last, 2},
	} {
		if _, err := w.WriteAt(raw, int64(c.entries)*SectorSize); err != nil {
			return fmt.Errorf("writing the partition table: %w", err)
		}
		if _, err := w.WriteAt(t.header(raw, c.own, c.other, c.entries), int64(c.own)*SectorSize); err != nil {
			return fmt.Errorf("writing the partition table: %w", err)
		}
		if err := w.Sync(); err != nil {
			return fmt.Errorf("flushing the partition table: %w", err)
		}
	}
	t.stale = ""
	return nil
}

func (t *Table) header(raw []byte, own, other, entries uint64) []byte {
	h := make([]byte, SectorSize)
	le := binary.LittleEndian
	first, last := t.Usable()
	copy(h, signature)
	le.PutUint32(h[8:], revision)
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], own)
	le.PutUint64(h[32:], other)
	le.PutUint64(h[40:], first)
	le.PutUint64(h[48:], last)
	copy(h[56:], t.DiskID[:])
	le.PutUint64(h[72:], entries)
	le.PutUint32(h[80:], uint32(len(t.Entries)))
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(raw))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
	return h
}
