package steps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// ownMount marks the agent's lines in fstab(5). mount(8) and systemd ignore
// options that begin with x-.
const ownMount = "x-slipway"

// SwapFile is where a swap file stands: on the state partition, since the root
// file system is an overlay, which cannot hold one.
const SwapFile = "/var/lib/slipway/swap.img"

// mounts makes the agent's part of fstab what the metadata asks for and mounts
// what is not mounted.
func mounts(ctx context.Context, n *node.Node) error {
	defaults := []string{"", "", "auto", "defaults,nofail", "0", "2"}
	for i, field := range n.User.Config.MountDefaultFields {
		if field != nil && i < len(defaults) {
			defaults[i] = *field
		}
	}
	var own [][]string
	for _, given := range n.User.Config.Mounts {
		if len(given) < 2 || len(given) > 6 || given[1] == "" {
			continue // one field alone asks for the default's removal, of which there is none; more were reported
		}
		fields := slices.Clone(defaults)
		copy(fields, given)
		if alias, ok := n.User.Config.DeviceAliases[fields[0]]; ok {
			fields[0] = alias
		}
		if !strings.ContainsAny(fields[0], "/=:") && fields[2] != "tmpfs" && fields[2] != "none" {
			fields[0] = "/dev/" + fields[0]
		}
		fields[3] += "," + ownMount
		own = append(own, fields)
	}
	fstab, err := n.Read("/etc/fstab")
	if err != nil {
		return err
	}
	changed, err := n.Ensure("/etc/fstab", 0o644, withOwnMounts(string(fstab), own))
	if err != nil {
		return err
	}
	var errs []error
	forSystemd := false
	for _, fields := range own {
		if leftToSystemd(fields) {
			forSystemd = true
			continue
		}
		errs = append(errs, mount(ctx, n, fields))
	}
	if changed && forSystemd && n.Exists("/run/systemd/system") {
		// Only then: amid a boot it makes systemd read every unit again.
		_, err := n.Command(ctx, "systemctl", "daemon-reload")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func withOwnMounts(fstab string, own [][]string) string {
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(fstab, "\n"), "\n") {
		fields := strings.Fields(line)
		ours := len(fields) > 3 && slices.Contains(strings.Split(fields[3], ","), ownMount)
		if line != "" && !ours {
			lines = append(lines, line)
		}
	}
	// fstab separates by white space and escapes it in octal.
	escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)
	for _, fields := range own {
		escaped := make([]string, len(fields))
		for i, f := range fields {
			escaped[i] = escape.Replace(f)
		}
		lines = append(lines, strings.Join(escaped, "\t"))
	}
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// leftToSystemd reports whether a mount is not to be made here and now: it needs
// the network, which comes later, or is made when it is used.
func leftToSystemd(fields []string) bool {
	switch fields[2] {
	case "nfs", "nfs4", "cifs":
		return true
	}
	for _, option := range strings.Split(fields[3], ",") {
		if option == "noauto" || option == "_netdev" || strings.HasPrefix(option, "x-systemd.") {
			return true
		}
	}
	return false
}

func mount(ctx context.Context, n *node.Node, fields []string) error {
	point, kind := fields[1], fields[2]
	if kind == "swap" || point == "none" || point == "swap" {
		if swapActive(n, fields[0]) {
			return nil
		}
		if _, err := n.Command(ctx, "swapon", fields[0]); err != nil {
			return err
		}
		n.Changed("swap on %s", fields[0])
		return nil
	}
	if !strings.HasPrefix(point, "/") {
		return fmt.Errorf("mounts: the mount point %q is not an absolute path", point)
	}
	if err := os.MkdirAll(n.Path(point), 0o755); err != nil {
		return err
	}
	if _, err := n.Command(ctx, "mountpoint", "--quiet", point); err == nil {
		return nil
	}
	if _, err := n.Command(ctx, "mount", point); err != nil {
		return err
	}
	n.Changed("mounted %s", point)
	return nil
}

func swapActive(n *node.Node, source string) bool {
	swaps, _ := n.Read("/proc/swaps")
	name := source
	if target, err := filepath.EvalSymlinks(n.Path(source)); err == nil {
		name = target
	}
	for _, line := range strings.Split(string(swaps), "\n") {
		if f := strings.Fields(line); len(f) > 0 && (f[0] == source || f[0] == name) {
			return true
		}
	}
	return false
}

// swapFile makes a swap file of the size asked for and uses it.
func swapFile(ctx context.Context, n *node.Node) error {
	s := n.User.Config.Swap
	if s == nil {
		return nil
	}
	size, err := swapSize(n, s.Size, s.MaxSize)
	if err != nil || size == 0 {
		return err
	}
	if s.Filename != "" && s.Filename != SwapFile {
		n.Report.Warn(node.Warning{Key: "swap.filename", Message: "the swap file is " + SwapFile + ": the root file system is an overlay, which cannot hold one"})
	}
	if swapActive(n, SwapFile) {
		return nil
	}
	if info, err := os.Stat(n.Path(SwapFile)); err != nil || info.Size() != size || !n.Kept.Is("swap", size) {
		f, err := os.OpenFile(n.Path(SwapFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		err = errors.Join(allocate(f, size), f.Close())
		if err != nil {
			os.Remove(n.Path(SwapFile))
			return fmt.Errorf("no room for a swap file of %d MiB on the state partition: %w", size>>20, err)
		}
		if _, err := n.Command(ctx, "mkswap", SwapFile); err != nil {
			return err
		}
		if err := n.Kept.Done("swap", nil, size); err != nil {
			return err
		}
		n.Changed("made a swap file of %d MiB", size>>20)
	}
	_, err = n.Command(ctx, "swapon", SwapFile)
	return err
}

func swapSize(n *node.Node, size, most string) (int64, error) {
	limit := int64(1) << 62
	if most != "" {
		var err error
		if limit, err = byteSize(most); err != nil {
			return 0, fmt.Errorf("swap.maxsize: %w", err)
		}
	}
	if size != "auto" && size != "" {
		bytes, err := byteSize(size)
		if err != nil {
			return 0, fmt.Errorf("swap.size: %w", err)
		}
		return min(bytes, limit), nil
	}
	// As much as there is memory, up to 4 GiB: more would only prolong the agony
	// of a node that is short of it.
	meminfo, err := n.Read("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(meminfo), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return min(kib<<10&^(1<<20-1), limit, 4<<30), err
		}
	}
	return 0, fmt.Errorf("swap.size auto: the size of memory is not known")
}

// byteSize reads a number of bytes with cloud-init's suffixes B, K, M, G, T.
func byteSize(text string) (int64, error) {
	number, shift := text, 0
	if i := strings.IndexAny("BKMGT", text[len(text)-1:]); i >= 0 {
		number, shift = text[:len(text)-1], 10*i
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || value < 0 || value > float64(int64(1)<<(62-shift)) {
		return 0, fmt.Errorf("must be a number of bytes, or one such as 512M or 2G")
	}
	return int64(value * float64(int64(1)<<shift)), nil
}
