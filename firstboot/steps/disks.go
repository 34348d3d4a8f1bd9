package steps

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Disks divides, formats and mounts the disks that the metadata names. Whatever
// has content stays as it is unless overwrite is true, and then it is
// overwritten once, not at every boot. The appliance's own disk is never
// touched: init grows it.
type Disks struct{}

func (Disks) Name() string { return "disks" }

const (
	diskPatience = 15 * time.Second
	diskPause    = 250 * time.Millisecond
	mkfsLimit    = 30 * time.Minute
)

func (Disks) Apply(ctx context.Context, n *node.Node) error {
	c := &n.User.Config
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.DiskSetup)) {
		if err := divide(ctx, n, name, c.DiskSetup[name]); err != nil {
			errs = append(errs, fmt.Errorf("disk_setup, %s: %w", name, err))
		}
	}
	for i, fs := range c.FSSetup {
		if err := format(ctx, n, fs); err != nil {
			errs = append(errs, fmt.Errorf("fs_setup[%d], %s: %w", i, fs.Device, err))
		}
	}
	errs = append(errs, mounts(ctx, n), swapFile(ctx, n))
	return errors.Join(errs...)
}

// device finds the device that a name stands for, waiting for one that is slow
// to appear.
func device(ctx context.Context, n *node.Node, name string) (string, error) {
	if alias, ok := n.User.Config.DeviceAliases[name]; ok {
		name = alias
	}
	if !strings.HasPrefix(name, "/") {
		name = "/dev/" + name
	}
	name = filepath.Clean(name)
	if !strings.HasPrefix(name, "/dev/") {
		return "", fmt.Errorf("is not a device: give its path, such as /dev/disk/by-id/virtio-data")
	}
	for waited := time.Duration(0); !n.Exists(name); waited += diskPause {
		if waited >= diskPatience {
			return "", fmt.Errorf("there is no such device after %s; attach the disk, or correct the name", diskPatience)
		}
		n.Waiting("waiting for the device %s", name)
		if !node.Sleep(ctx, diskPause) {
			return "", ctx.Err()
		}
	}
	n.Waiting("")
	target, err := filepath.EvalSymlinks(n.Path(name))
	if err != nil {
		return "", err
	}
	path := "/" + strings.TrimPrefix(strings.TrimPrefix(target, filepath.Clean(n.Root)), "/")
	if n.Boot.ESP != "" && wholeDisk(n, path) == wholeDisk(n, n.Boot.ESP) {
		return "", fmt.Errorf("is the appliance's own disk, which init keeps; give a disk of its own to your data")
	}
	return path, nil
}

// wholeDisk is the disk that a partition is on, or the disk itself.
func wholeDisk(n *node.Node, path string) string {
	dir, err := filepath.EvalSymlinks(n.Path("/sys/class/block/" + filepath.Base(path)))
	if err != nil {
		return filepath.Base(path)
	}
	if _, err := os.Stat(dir + "/partition"); err == nil {
		return filepath.Base(filepath.Dir(dir))
	}
	return filepath.Base(dir)
}

// content lists the signatures on a device: file systems, partition tables, RAID.
func content(ctx context.Context, n *node.Node, device string) (string, error) {
	out, err := n.Command(ctx, "wipefs", "--noheadings", "--output", "TYPE", device)
	return strings.Join(strings.Fields(out), ", "), err
}

func divide(ctx context.Context, n *node.Node, name string, d cloudconfig.DiskSetup) error {
	path, err := device(ctx, n, name)
	if err != nil {
		return err
	}
	key := "disk " + name
	if n.Kept.Is(key, d) || !d.Layout.Whole && !d.Layout.Remove && len(d.Layout.Parts) == 0 {
		return nil
	}
	found, err := content(ctx, n, path)
	if err != nil {
		return err
	}
	if found != "" && !d.Overwrite {
		n.Warn("", "disk_setup."+name, "has content (%s) and stays as it is; overwrite: true would destroy that", found)
		return n.Kept.Done(key, nil, d)
	}
	if d.Layout.Remove {
		if _, err := n.Command(ctx, "wipefs", "--all", path); err != nil {
			return err
		}
		n.Changed("removed all partitions of %s", path)
		return n.Kept.Done(key, nil, d)
	}
	script, err := sfdiskScript(n, path, d)
	if err != nil {
		return err
	}
	if _, err := n.Execute(ctx, node.Command{Argv: []string{"sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", path}, Stdin: script}); err != nil {
		return err
	}
	if n.Has("udevadm") {
		if _, err := n.Command(ctx, "udevadm", "settle", "--timeout=20"); err != nil {
			return err
		}
	}
	n.Changed("divided %s", path)
	return n.Kept.Done(key, nil, d)
}

var partitionType = regexp.MustCompile(`^[0-9A-Za-z-]{1,36}$`)

// sfdiskScript writes the layout as sfdisk(8) reads it.
func sfdiskScript(n *node.Node, path string, d cloudconfig.DiskSetup) (string, error) {
	label := map[string]string{"": "dos", "mbr": "dos", "gpt": "gpt"}[d.TableType]
	if label == "" {
		return "", fmt.Errorf("table_type must be mbr or gpt")
	}
	script := "label: " + label + "\n"
	if d.Layout.Whole {
		return script + "type=linux\n", nil
	}
	sectors, err := n.Read("/sys/class/block/" + filepath.Base(path) + "/size")
	if err != nil {
		return "", err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(sectors)), 10, 64)
	if err != nil {
		return "", fmt.Errorf("the size of %s is not known: %w", path, err)
	}
	mib := size / 2048
	total := 0
	for _, p := range d.Layout.Parts {
		total += p.Percent
		line := fmt.Sprintf("size=%dMiB, ", mib*int64(p.Percent)/100)
		if total == 100 {
			line = "" // the last partition takes what is left after alignment
		}
		kind := p.Type
		if kind == "" {
			kind = "linux"
		}
		if !partitionType.MatchString(kind) {
			return "", fmt.Errorf("a partition type must be a number, a GUID or a word that sfdisk knows")
		}
		script += line + "type=" + kind + "\n"
	}
	return script, nil
}

var filesystemName = regexp.MustCompile(`^[a-z0-9_]{2,16}$`)

func format(ctx context.Context, n *node.Node, fs cloudconfig.FSSetup) error {
	if !filesystemName.MatchString(fs.Filesystem) {
		return fmt.Errorf("filesystem must name one, such as ext4")
	}
	path, err := device(ctx, n, fs.Device)
	if err != nil {
		return err
	}
	switch fs.Partition {
	case "", "none":
	case "auto", "any": // the first partition, or the whole disk where there is none
		if first := partition(path, "1"); n.Exists(first) {
			path = first
		}
	default:
		if _, err := strconv.Atoi(fs.Partition); err != nil {
			return fmt.Errorf("partition must be auto, any, none or a number")
		}
		if path, err = device(ctx, n, partition(path, fs.Partition)); err != nil {
			return err
		}
	}
	key := "file system " + fs.Device + " " + fs.Partition
	if n.Kept.Is(key, fs) {
		return nil
	}
	found, err := content(ctx, n, path)
	if err != nil {
		return err
	}
	if found != "" && !fs.Overwrite {
		if found != fs.Filesystem {
			n.Warn("", "fs_setup", "%s has content (%s) and stays as it is; overwrite: true would destroy that", path, found)
		}
		return n.Kept.Done(key, nil, fs)
	}
	argv := []string{"mkfs." + fs.Filesystem}
	labelOption := "-L"
	switch fs.Filesystem {
	case "swap":
		argv = []string{"mkswap", "-f"}
	case "ext2", "ext3", "ext4":
		argv = append(argv, "-F", "-q")
	case "vfat":
		labelOption = "-n"
	case "xfs", "btrfs":
		argv = append(argv, "-f")
	}
	if fs.Label != "" {
		argv = append(argv, labelOption, fs.Label)
	}
	for _, options := range fs.ExtraOpts {
		argv = append(argv, strings.Fields(options)...)
	}
	if _, err := n.Execute(ctx, node.Command{Argv: append(argv, path), Timeout: mkfsLimit}); err != nil {
		return err
	}
	n.Changed("made a file system on %s, %s", path, fs.Filesystem)
	return n.Kept.Done(key, nil, fs)
}

// partition is the device of a disk's partition: a disk whose name ends in a
// digit has a p before the number.
func partition(disk, number string) string {
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		return disk + "p" + number
	}
	return disk + number
}
