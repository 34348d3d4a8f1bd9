// Package blockdev finds the disk that the firmware booted from, among those
// that the kernel shows in sysfs, and tells the kernel of edited partitions.
package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

// Disk is a whole disk.
type Disk struct {
	Name  string // as in /sys/block
	Path  string // of its device file
	Size  int64  // bytes
	Table *gpt.Table
	sys   string
	dev   string
}

// FindPartition looks for the partition with the given GUID on all disks, and
// returns the disk and the index of the partition in its table. If there is
// none yet, found is false; skipped says what was seen and why it was no match.
func FindPartition(sys, dev string, id gpt.GUID) (d *Disk, index int, found bool, skipped []string) {
	dirs, _ := filepath.Glob(sys + "/block/*")
	sort.Strings(dirs)
	for _, dir := range dirs {
		disk, err := open(sys, dev, filepath.Base(dir))
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("%s: %v", filepath.Base(dir), err))
			continue
		}
		if disk == nil {
			continue
		}
		i := disk.Table.Find(id)
		if i < 0 {
			skipped = append(skipped, disk.Name+": another disk")
			continue
		}
		if _, err := os.Stat(disk.Partition(i)); err != nil {
			skipped = append(skipped, fmt.Sprintf("%s: partition %d has no device file yet", disk.Name, i+1))
			continue
		}
		return disk, i, true, skipped
	}
	return nil, -1, false, skipped
}

// open returns nil without an error for devices that can hold no partitions
// or no medium.
func open(sys, dev, name string) (*Disk, error) {
	for _, prefix := range []string{"loop", "ram", "zram", "dm-", "sr", "fd", "md"} {
		if strings.HasPrefix(name, prefix) {
			return nil, nil
		}
	}
	text, err := os.ReadFile(sys + "/block/" + name + "/size")
	if err != nil {
		return nil, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || sectors == 0 {
		return nil, err
	}
	// sysfs counts in 512 bytes whatever the sector size.
	d := &Disk{Name: name, Path: dev + "/" + strings.ReplaceAll(name, "!", "/"), Size: sectors * 512, sys: sys, dev: dev}
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d.Table, err = gpt.Read(f, d.Size)
	return d, err
}

// Partition is the device file of Entries[index] of the table.
func (d *Disk) Partition(index int) string {
	sep := ""
	if last := d.Path[len(d.Path)-1]; last >= '0' && last <= '9' {
		sep = "p"
	}
	return d.Path + sep + strconv.Itoa(index+1)
}
