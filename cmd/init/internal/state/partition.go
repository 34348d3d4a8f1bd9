// Package state looks after what outlives an image version: the state
// partition with its file system, the directories in it that stand in the root
// file system, and the machine's identity.
//
// The partition carries the name "slipway-new" until mkfs is through and
// flushed, and "slipway-state" from then on. The first name means: make the
// file system (again). The second means: there is data, never make one.
package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/cmd/init/internal/blockdev"
	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

const (
	nameNew = "slipway-new"
	name    = "slipway-state" // of the partition and of the file system

	minSectors = 128 << 20 / gpt.SectorSize
)

// Runner runs a program of the root file system and returns what it printed
// and its exit status; err is for programs that could not be run.
type Runner func(program string, args ...string) (output []byte, status int, err error)

// Kernel is told of partitions that the table got or that grew; *blockdev.Disk
// is one.
type Kernel interface {
	AddPartition(index int) error
	ResizePartition(index int) error
}

// plan edits the table so that the state partition exists and reaches as far
// as it can, and returns its index.
func plan(t *gpt.Table, id gpt.GUID) (index int, created, grown bool, err error) {
	index = t.Named(name, nameNew)
	if index >= 0 {
		e := &t.Entries[index]
		if last, ok := t.Room(e.First, index); ok && last > e.Last {
			e.Last, grown = last, true
		}
		return index, false, grown, nil
	}
	first := t.AfterLast()
	last, ok := t.Room(first, -1)
	if !ok || last-first+1 < minSectors {
		return -1, false, false, fmt.Errorf("the disk has no room for the state partition: at least %d MiB must be free behind the boot partition; give the machine a larger disk",
			minSectors*gpt.SectorSize>>20)
	}
	for i := range t.Entries {
		if !t.Entries[i].Used() {
			t.Entries[i] = gpt.Entry{Type: gpt.LinuxData, ID: id, First: first, Last: last, Name: nameNew}
			return i, true, false, nil
		}
	}
	return -1, false, false, fmt.Errorf("all %d slots of the partition table are taken", len(t.Entries))
}

// Prepare makes sure that there is a sound state file system that reaches to
// the disk's end, up to mounting it. id is the GUID that a new partition gets.
func Prepare(d *blockdev.Disk, kernel Kernel, id gpt.GUID, run Runner, say func(string, ...any)) (bootfacts.State, error) {
	mended := d.Table.Stale()
	index, created, grown, err := plan(d.Table, id)
	if err != nil {
		return bootfacts.State{}, err
	}
	f := bootfacts.State{Device: d.Partition(index), Grown: grown, Mended: mended}
	e := &d.Table.Entries[index]
	f.Size = int64(e.Last-e.First+1) * gpt.SectorSize
	if created && hasState(d.Path, int64(e.First)*gpt.SectorSize) {
		say("behind the boot partition there is the state of an earlier installation; keeping it")
		e.Name, f.Adopted = name, true
	}
	if created || grown || mended != "" {
		if mended != "" {
			say("writing the partition table again: %s", mended)
		}
		if err := writeTable(d); err != nil {
			return f, err
		}
	}
	switch {
	case created:
		err = kernel.AddPartition(index)
	case grown:
		say("growing the state partition to %d MiB", f.Size>>20)
		err = kernel.ResizePartition(index)
	}
	if err != nil {
		return f, err
	}
	if e.Name == nameNew {
		f.Created, f.Resumed, f.Check = true, !created, "new"
		say("making the state file system, %d MiB", f.Size>>20)
		if err := makeFS(f.Device, run); err != nil {
			return f, err
		}
		e.Name = name
		return f, writeTable(d)
	}
	f.Check, err = check(f.Device, run)
	return f, err
}

func writeTable(d *blockdev.Disk) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.Table.Write(f)
}

// makeFS makes the file system and does not return before it is on the disk.
// Discarding is left out, since a fresh virtual disk has nothing to discard
// and some answer slowly; the inode tables are zeroed later by the kernel.
func makeFS(device string, run Runner) error {
	out, status, err := run("/usr/sbin/mkfs.ext4", "-F", "-q", "-L", name, "-m", "1",
		"-O", "metadata_csum,64bit", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", device)
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("making the state file system on %s: mkfs.ext4 ended with status %d: %s", device, status, bytes.TrimSpace(out))
	}
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flushing the new state file system: %w", err)
	}
	return nil
}

// check replays the journal and repairs what can be repaired without a
// question. e2fsck(8): 1 is repaired, 2 asks for a reboot if mounted, which it
// is not; anything from 4 on is damage left.
func check(device string, run Runner) (string, error) {
	out, status, err := run("/usr/sbin/e2fsck", "-p", device)
	switch {
	case err != nil:
		return "", err
	case status == 0:
		return "clean", nil
	case status < 4:
		return "repaired", nil
	}
	return "", fmt.Errorf("the state file system on %s is damaged; e2fsck -p ended with status %d and changed nothing that needs a decision:\n%s\n"+
		"The data is untouched. Attach the disk to another machine, save what matters and run e2fsck there",
		device, status, bytes.TrimSpace(out))
}

// Fields of the ext4 superblock, Linux Documentation/filesystems/ext4,
// "Super Block".
const (
	superOffset = 1024
	superMagic  = 0xEF53
)

// hasState says whether a state file system begins at offset of the disk.
func hasState(disk string, offset int64) bool {
	f, err := os.Open(disk)
	if err != nil {
		return false
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, offset+superOffset); err != nil {
		return false
	}
	return binary.LittleEndian.Uint16(sb[0x38:]) == superMagic &&
		string(bytes.TrimRight(sb[0x78:0x78+16], "\x00")) == name
}

// fsBlocks reads the size of the file system on device.
func fsBlocks(device string) (blocks, blockSize uint64, err error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, superOffset); err != nil {
		return 0, 0, err
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != superMagic || le.Uint32(sb[0x18:]) > 6 {
		return 0, 0, fmt.Errorf("%s holds no ext4", device)
	}
	blocks = uint64(le.Uint32(sb[0x04:])) | uint64(le.Uint32(sb[0x150:]))<<32
	return blocks, 1024 << le.Uint32(sb[0x18:]), nil
}
