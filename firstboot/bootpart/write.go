package bootpart

import (
	"encoding/binary"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/disk/fatname"
	"github.com/slipwayhq/slipway/internal/fault"
)

// tidy takes back what power cuts left behind, before the first change.
func (v *Volume) tidy() error {
	if v.tidied {
		return nil
	}
	for _, e := range v.leftover.twins {
		if err := v.unlink(e); err != nil {
			return err
		}
	}
	for _, at := range v.leftover.slots {
		if err := v.write(at, []byte{slotFree}); err != nil {
			return err
		}
	}
	for _, at := range v.leftover.stale {
		if err := v.write(at, make([]byte, fatname.Slot)); err != nil {
			return err
		}
	}
	dirty := map[uint32]uint32{}
	for _, last := range v.leftover.tails {
		dirty[last] = mask
	}
	if v.leftover.orphan || len(dirty) > 0 {
		for c := uint32(2); c < uint32(len(v.table)); c++ {
			if n := v.table[c] & mask; n != 0 && n != badBlock && !v.owner[c] {
				dirty[c] = 0
			}
		}
	}
	if err := v.sync(); err != nil {
		return err
	}
	if v.differs {
		for c := range uint32(len(v.table)) {
			if _, ok := dirty[c]; !ok {
				dirty[c] = v.table[c] & mask
			}
		}
	}
	if err := v.link(dirty); err != nil {
		return err
	}
	v.tidied, v.differs = true, false
	return v.look()
}

// Tidy takes back what power cuts left behind.
func (v *Volume) Tidy() error {
	if err := v.tidy(); err != nil {
		return err
	}
	return v.count()
}

func (v *Volume) write(at int64, b []byte) error {
	if _, err := v.dev.WriteAt(b, at); err != nil {
		return fault.New(fault.Failed, "writing to the boot partition: %w", err)
	}
	return nil
}

func (v *Volume) sync() error {
	if err := v.dev.Sync(); err != nil {
		return fault.New(fault.Failed, "flushing the boot partition: %w", err)
	}
	return nil
}

// link writes entries of the table, sector by sector, into all its copies, and flushes.
func (v *Volume) link(changes map[uint32]uint32) error {
	sectors := map[int64]bool{}
	for c, to := range changes {
		v.table[c] = v.table[c]&^mask | to&mask
		sectors[int64(c)*entry/sector] = true
	}
	if len(sectors) == 0 {
		return nil
	}
	for s := range sectors {
		b := make([]byte, sector)
		for i := range sector / entry {
			if c := s*sector/entry + int64(i); c < int64(len(v.table)) {
				binary.LittleEndian.PutUint32(b[i*entry:], v.table[c])
			}
		}
		for _, table := range v.tables {
			if err := v.write(table+s*sector, b); err != nil {
				return err
			}
		}
	}
	return v.sync()
}

// chain makes a chain of clusters and flushes it; nothing leads to it yet.
func (v *Volume) chain(clusters []uint32) error {
	changes := map[uint32]uint32{}
	for i, c := range clusters {
		changes[c] = mask
		if i+1 < len(clusters) {
			changes[c] = clusters[i+1]
		}
	}
	if err := v.link(changes); err != nil {
		return err
	}
	for _, c := range clusters {
		v.owner[c] = true
	}
	return nil
}

// take finds free clusters, behind the last one of a file if there is room.
func (v *Volume) take(n int, behind uint32) ([]uint32, error) {
	var out []uint32
	total := uint32(len(v.table))
	for i := uint32(0); i < total-2 && len(out) < n; i++ {
		c := 2 + (max(behind, 2)-2+i)%(total-2)
		if !v.owner[c] && v.table[c]&mask == 0 {
			out = append(out, c)
		}
	}
	if len(out) < n {
		return nil, fault.New(fault.Space, "the boot partition is full").WithMend("run: slipway versions; older versions go with the next upgrade")
	}
	return out, nil
}

// Append writes at the end of a file, which is made with its directories if it is
// not there. When it returns, the file has grown on the disk.
func (v *Volume) Append(name string, b []byte) error {
	if err := v.tidy(); err != nil {
		return err
	}
	e := v.entries[fold(name)]
	if e == nil {
		var err error
		if e, err = v.create(name); err != nil {
			return err
		}
	}
	if e.Dir || e.Size+int64(len(b)) > 1<<32-1 {
		return fault.New(fault.Input, "boot partition: /%s cannot have %d more bytes", name, len(b))
	}
	old := len(e.chain)
	need := int((e.Size+int64(len(b))+v.cluster-1)/v.cluster) - old
	last := uint32(0)
	if old > 0 {
		last = e.chain[old-1]
	}
	fresh, err := v.take(need, last+1)
	if err != nil {
		return err
	}
	if err := v.fill(e, append(slices.Clone(e.chain), fresh...), b); err != nil {
		return err
	}
	if err := v.chain(fresh); err != nil {
		return err
	}
	if old > 0 && need > 0 {
		if err := v.link(map[uint32]uint32{last: fresh[0]}); err != nil {
			return err
		}
	}
	e.chain = append(e.chain, fresh...)
	if e.Size += int64(len(b)); e.start == 0 && len(e.chain) > 0 {
		e.start = e.chain[0]
	}
	return v.update(e)
}

// fill writes content behind a file's end and flushes it.
func (v *Volume) fill(e *Entry, chain []uint32, b []byte) error {
	for off := e.Size; len(b) > 0; {
		i := int(off / v.cluster)
		run := i + 1
		for run < len(chain) && chain[run] == chain[run-1]+1 {
			run++
		}
		skip := off % v.cluster
		n := min(int64(len(b)), int64(run-i)*v.cluster-skip)
		if err := v.write(v.at(chain[i])+skip, b[:n]); err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return v.sync()
}

// update writes start and size of a file into its short entry: one write within one sector.
func (v *Volume) update(e *Entry) error {
	at := e.slots[len(e.slots)-1]
	rec := make([]byte, fatname.Slot)
	if _, err := v.dev.ReadAt(rec, at); err != nil {
		return bad("%w", err)
	}
	place(rec, e)
	if err := v.write(at, rec); err != nil {
		return err
	}
	return v.sync()
}

func place(rec []byte, e *Entry) {
	le := binary.LittleEndian
	le.PutUint16(rec[20:], uint16(e.start>>16))
	le.PutUint16(rec[26:], uint16(e.start))
	if !e.Dir {
		le.PutUint32(rec[28:], uint32(e.Size))
	}
}

// create makes an empty file.
func (v *Volume) create(name string) (*Entry, error) {
	e := &Entry{Path: strings.Trim(name, "/")}
	return e, v.enter(e)
}

// MakeDir makes a directory and those above it.
func (v *Volume) MakeDir(name string) error {
	if err := v.tidy(); err != nil {
		return err
	}
	if e := v.entries[fold(name)]; e != nil {
		if !e.Dir {
			return fault.New(fault.Input, "boot partition: /%s is a file", name)
		}
		return nil
	}
	if err := v.MakeDir(parent(name)); err != nil {
		return err
	}
	own, err := v.take(1, 0)
	if err != nil {
		return err
	}
	b := make([]byte, v.cluster)
	up := v.entries[fold(parent(name))].start
	if up == v.root {
		up = 0 // how ".." names the root
	}
	for i, d := range []struct {
		name  string
		start uint32
	}{{".", own[0]}, {"..", up}} {
		rec := b[i*fatname.Slot:][:fatname.Slot]
		short := fatname.Pack(d.name, "")
		copy(rec, short[:])
		rec[11] = attrDir
		stamp(rec)
		place(rec, &Entry{start: d.start, Dir: true})
	}
	if err := v.write(v.at(own[0]), b); err != nil {
		return err
	}
	if err := v.sync(); err != nil {
		return err
	}
	if err := v.chain(own); err != nil {
		return err
	}
	return v.enter(&Entry{Path: strings.Trim(name, "/"), Dir: true, start: own[0], chain: own})
}

// stamp dates an entry to the first day that FAT knows: nothing here goes by dates.
func stamp(rec []byte) {
	first := time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(rec[at:], uint16(int(first.Month())<<5|first.Day()))
	}
}

// enter writes the entry of a file or directory: first the pieces of its name, which
// mean nothing by themselves, then the short entry, in one write within one sector.
func (v *Volume) enter(e *Entry) error {
	if err := v.MakeDir(parent(e.Path)); err != nil {
		return err
	}
	dir, base := v.entries[fold(parent(e.Path))], path.Base(e.Path)
	if err := fatname.Check(base); err != nil {
		return fault.New(fault.Input, "boot partition: /%s: %w", e.Path, err)
	}
	taken, err := v.shortNames(dir)
	if err != nil {
		return err
	}
	var pieces [][fatname.Slot]byte
	short, exact := fatname.Short(base)
	if !exact || taken[short] {
		short = fatname.Alias(base, taken)
		pieces = fatname.Pieces(base, short)
	}
	slots, err := v.freeSlots(dir, len(pieces)+1)
	if err != nil {
		return err
	}
	for i, piece := range pieces {
		if err := v.write(slots[i], piece[:]); err != nil {
			return err
		}
	}
	if err := v.sync(); err != nil {
		return err
	}
	rec := make([]byte, fatname.Slot)
	copy(rec, short[:])
	if rec[11] = 0x20; e.Dir { // the archive bit
		rec[11] = attrDir
	}
	stamp(rec)
	place(rec, e)
	if err := v.write(slots[len(slots)-1], rec); err != nil {
		return err
	}
	if err := v.sync(); err != nil {
		return err
	}
	e.slots = slots
	v.entries[fold(e.Path)] = e
	return nil
}

// shortNames are those that a directory's entries have.
func (v *Volume) shortNames(dir *Entry) (map[[11]byte]bool, error) {
	taken := map[[11]byte]bool{}
	for _, c := range dir.chain {
		b := make([]byte, v.cluster)
		if _, err := v.dev.ReadAt(b, v.at(c)); err != nil {
			return nil, bad("/%s: %w", dir.Path, err)
		}
		for i := 0; i < len(b); i += fatname.Slot {
			if b[i] == 0 {
				return taken, nil
			}
			if b[i] != slotFree && b[i+11]&0x3f != attrLong {
				taken[[11]byte(b[i:i+11])] = true
			}
		}
	}
	return taken, nil
}

// freeSlots finds n slots of a directory in a row; the directory grows if need be.
func (v *Volume) freeSlots(dir *Entry, n int) ([]int64, error) {
	var run []int64
	for i := 0; ; i++ {
		if i == len(dir.chain) {
			if err := v.growDir(dir); err != nil {
				return nil, err
			}
		}
		b := make([]byte, v.cluster)
		if _, err := v.dev.ReadAt(b, v.at(dir.chain[i])); err != nil {
			return nil, bad("/%s: %w", dir.Path, err)
		}
		for at := 0; at < len(b); at += fatname.Slot {
			if b[at] != slotFree && b[at] != 0 {
				run = nil
				continue
			}
			if run = append(run, v.at(dir.chain[i])+int64(at)); len(run) == n {
				return run, nil
			}
		}
	}
}

func (v *Volume) growDir(dir *Entry) error {
	if int64(len(dir.chain)+1)*v.cluster > maxDir {
		return fault.New(fault.Space, "boot partition: /%s has no room for another name", dir.Path)
	}
	last := dir.chain[len(dir.chain)-1]
	fresh, err := v.take(1, last)
	if err != nil {
		return err
	}
	if err := v.write(v.at(fresh[0]), make([]byte, v.cluster)); err != nil {
		return err
	}
	if err := v.sync(); err != nil {
		return err
	}
	if err := v.chain(fresh); err != nil {
		return err
	}
	dir.chain = append(dir.chain, fresh[0])
	return v.link(map[uint32]uint32{last: fresh[0]})
}

// Rename gives a file another name, which nobody may have.
func (v *Volume) Rename(from, to string) error {
	if err := v.tidy(); err != nil {
		return err
	}
	e := v.entries[fold(from)]
	if e == nil || e.Dir || v.entries[fold(to)] != nil {
		return fault.New(fault.Internal, "boot partition: /%s cannot become /%s", from, to)
	}
	now := &Entry{Path: strings.Trim(to, "/"), Size: e.Size, start: e.start, chain: e.chain}
	if err := v.enter(now); err != nil {
		return err
	}
	return v.unlink(e)
}

// unlink takes an entry away: the short one first, without which the rest means nothing.
func (v *Volume) unlink(e *Entry) error {
	for i := len(e.slots) - 1; i >= 0; i-- {
		if err := v.write(e.slots[i], []byte{slotFree}); err != nil {
			return err
		}
		if i == len(e.slots)-1 {
			if err := v.sync(); err != nil {
				return err
			}
		}
	}
	if v.entries[fold(e.Path)] == e {
		delete(v.entries, fold(e.Path))
	}
	return v.sync()
}

// Remove takes a file away, or a directory that is empty. What is not there is removed already.
func (v *Volume) Remove(name string) error {
	if err := v.tidy(); err != nil {
		return err
	}
	e := v.entries[fold(name)]
	switch {
	case e == nil:
		return nil
	case e.Path == "" || e.Dir && len(v.List(name)) > 0:
		return fault.New(fault.Internal, "boot partition: /%s is not empty", name)
	}
	if err := v.unlink(e); err != nil {
		return err
	}
	changes := map[uint32]uint32{}
	for _, c := range e.chain {
		changes[c], v.owner[c] = 0, false
	}
	return v.link(changes)
}

// count brings the hint of how much is free up to date (FSInfo), for checkers and
// for the kernel at the next mount.
func (v *Volume) count() error {
	b := make([]byte, sector)
	if _, err := v.dev.ReadAt(b, v.info); err != nil {
		return bad("%w", err)
	}
	le := binary.LittleEndian
	free, next := uint32(v.Free()/v.cluster), uint32(2)
	if le.Uint32(b) != 0x41615252 || le.Uint32(b[484:]) != 0x61417272 || le.Uint32(b[488:]) == free {
		return nil // none, or right already
	}
	le.PutUint32(b[488:], free)
	le.PutUint32(b[492:], next)
	if err := v.write(v.info, b); err != nil {
		return err
	}
	return v.sync()
}

// Close brings the hints up to date.
func (v *Volume) Close() error {
	if !v.tidied {
		return nil
	}
	return v.count()
}
