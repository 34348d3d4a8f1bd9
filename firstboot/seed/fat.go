package seed

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat16"
)

const (
	smallFAT = 2 << 20  // FAT12
	largeFAT = 64 << 20 // FAT16
)

// writeFAT writes the files, all in the root directory, as a FAT file system.
func writeFAT(w io.Writer, label string, files []file) error {
	size, content := int64(smallFAT), int64(0)
	id := sha256.New()
	for _, f := range files {
		content += int64(len(f.content))
		fmt.Fprintf(id, "%s:%d:%s", f.path, len(f.content), f.content)
	}
	// Room for the tables and for clusters that are not full.
	if content > smallFAT-smallFAT/4 {
		size = largeFAT
	}
	if content > largeFAT-largeFAT/4 {
		return fmt.Errorf("the seed has %d MiB, more than the limit of %d", content>>20, (largeFAT-largeFAT/4)>>20)
	}
	disk := &memory{data: make([]byte, size)}
	fsys, err := createFAT(disk, size, label)
	if err != nil {
		return fmt.Errorf("making the seed: %w", err)
	}
	for _, f := range files {
		out, err := fsys.OpenFile("/"+f.path, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return fmt.Errorf("making the seed: %w", err)
		}
		if _, err := out.Write(f.content); err != nil {
			return fmt.Errorf("making the seed: %w", err)
		}
		out.Close()
	}
	// The volume's serial number is what udev names it by; it follows the content.
	copy(disk.data[39:43], id.Sum(nil))
	bits := 12
	if size > smallFAT {
		bits = 16
	}
	normaliseFAT(disk.data, bits)
	_, err = w.Write(disk.data)
	return err
}

func createFAT(disk *memory, size int64, label string) (filesystem.FileSystem, error) {
	if size > smallFAT {
		return fat16.Create(disk, size, 0, 512, label, true)
	}
	return fat12.Create(disk, size, 0, 512, label, true)
}

// normaliseFAT sets the dates of all entries of the root directory to the first
// that FAT can express. It also gives back the clusters that go-diskfs takes
// for nothing, and that fsck.vfat complains of: cluster 2, although in FAT12
// and FAT16 the root directory has its own place, and one for each empty file.
func normaliseFAT(disk []byte, bits int) {
	le := binary.LittleEndian
	sector := int(le.Uint16(disk[11:]))
	table, length, copies := int(le.Uint16(disk[14:]))*sector, int(le.Uint16(disk[22:]))*sector, int(disk[16])
	free := func(cluster int) {
		for i := range copies {
			at := disk[table+i*length+cluster*bits/8:]
			switch {
			case bits == 16:
				le.PutUint16(at, 0)
			case cluster%2 == 0:
				le.PutUint16(at, le.Uint16(at)&0xf000)
			default:
				le.PutUint16(at, le.Uint16(at)&0x000f)
			}
		}
	}
	free(2)
	root := table + copies*length
	const date = 1<<5 | 1 // 1980-01-01
	for i := range int(le.Uint16(disk[17:])) {
		rec := disk[root+32*i : root+32*i+32]
		if rec[0] == 0 {
			return
		}
		if rec[11] == 0x0f { // a piece of a long name has neither dates nor clusters
			continue
		}
		copy(rec[13:20], make([]byte, 7))
		le.PutUint16(rec[16:], date)
		le.PutUint16(rec[18:], date)
		le.PutUint16(rec[22:], 0)
		le.PutUint16(rec[24:], date)
		if start := int(le.Uint16(rec[26:])); start != 0 && le.Uint32(rec[28:]) == 0 {
			free(start)
			le.PutUint16(rec[26:], 0)
		}
	}
}
