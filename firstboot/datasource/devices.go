package datasource

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// seedless are the beginnings of the names of block devices that hold no seed.
// Loop devices carry our own layers; RAM disks nothing; a floppy drive that is
// not there takes seconds to say so.
var seedless = [...]string{"loop", "ram", "zram", "fd", "nbd", "drbd", "dm-", "md"}

// deviceNames lists the block devices that may hold a seed: CD drives first,
// since that is where seeds are, then the rest by name.
func deviceNames(root string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(root, "sys/class/block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var cds, disks []string
	for _, e := range entries {
		name := e.Name()
		switch {
		case slices.ContainsFunc(seedless[:], func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
		case strings.HasPrefix(name, "sr"):
			cds = append(cds, name)
		default:
			disks = append(disks, name)
		}
	}
	return append(cds, disks...), nil
}

// attribute reads a word about a block device from sysfs; "" if it is not there.
func attribute(root, device, name string) string {
	text, _ := os.ReadFile(filepath.Join(root, "sys/class/block", device, name))
	return strings.TrimSpace(string(text))
}

// listDevices is Env.Devices by the machine's sysfs.
func listDevices(root string) ([]Device, error) {
	names, err := deviceNames(root)
	if err != nil {
		return nil, err
	}
	var out []Device
	for _, name := range names {
		if attribute(root, name, "size") == "0" {
			continue // a card reader without a card
		}
		path := filepath.Join(root, "dev", name)
		out = append(out, Device{Path: "/dev/" + name, Open: func() (Medium, error) { return os.Open(path) }})
	}
	return out, nil
}

// traces is Env.Traces by the machine's sysfs. The kernel gives each medium that
// it notices in a drive a number of its own, diskseq
// (Documentation/ABI/stable/sysfs-block), and udev keeps a directory of the
// labels that it has read.
func traces(root string) string {
	var b strings.Builder
	names, _ := deviceNames(root)
	for _, name := range names {
		fmt.Fprintf(&b, "%s %s %s\n", name, attribute(root, name, "size"), attribute(root, name, "diskseq"))
	}
	if labels, err := os.Stat(filepath.Join(root, "dev/disk/by-label")); err == nil {
		fmt.Fprintln(&b, labels.ModTime().UnixNano())
	}
	return b.String()
}
