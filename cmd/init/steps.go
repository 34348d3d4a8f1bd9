package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/cmd/init/internal/blockdev"
	"github.com/slipwayhq/slipway/cmd/init/internal/cmdline"
	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
	"github.com/slipwayhq/slipway/cmd/init/internal/halt"
	"github.com/slipwayhq/slipway/cmd/init/internal/modules"
	"github.com/slipwayhq/slipway/cmd/init/internal/report"
	"github.com/slipwayhq/slipway/cmd/init/internal/state"
)

const (
	layersDir = "/run/slipway/layers"
	lowerDir  = "/run/slipway/lower" // all layers, read-only; gone before systemd starts
	rootDir   = "/newroot"
)

// bootRun is one run through the steps; each step fills in what later ones need.
type bootRun struct {
	started time.Time
	out     *report.Report
	args    struct {
		version string
		esp     gpt.GUID
		debug   bool
	}
	disk   *blockdev.Disk
	loader *modules.Loader
	mounts []string // of the layers, top first
	role   *manifest.Role
	facts  bootfacts.Facts

	stateMounted bool
}

// mountKernelFilesystems makes /dev, /proc, /sys and /run what the kernel has.
func mountKernelFilesystems() error {
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", m.dir, err)
		}
	}
	return nil
}

func (b *bootRun) readArguments() error {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	a, err := cmdline.Parse(string(text))
	if err != nil {
		return err
	}
	b.args.version, b.args.esp, b.args.debug = a.Version, a.ESP, a.Debug
	b.out.Say("starting version %s", a.Version)
	return nil
}

// findBootPartition loads drivers for what the machine shows, over and over,
// since a bus that comes up shows new devices, until the disk is there.
func (b *bootRun) findBootPartition() error {
	var err error
	if b.loader, err = modules.New("/usr/lib/modules", "/sys"); err != nil {
		return err
	}
	deadline := time.Now().Add(espWait)
	nextWord := time.Now().Add(5 * time.Second)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		b.loader.LoadForDevices(b.out.Say)
		disk, index, found, skipped := blockdev.FindPartition("/sys", "/dev", b.args.esp)
		if found {
			b.disk = disk
			b.facts.ESP = disk.Partition(index)
			return nil
		}
		switch now := time.Now(); {
		case now.After(deadline):
			return fmt.Errorf("no disk has the boot partition %s after %d seconds.\nDisks seen: %s.\n"+
				"Attach the appliance's disk to a controller that its kernel knows: virtio, SATA, NVMe, SCSI of VMware, LSI, Hyper-V or Xen",
				b.args.esp, int(espWait.Seconds()), listOr(skipped, "none"))
		case now.After(nextWord):
			b.out.Say("waiting for the boot partition %s; disks seen: %s", b.args.esp, listOr(skipped, "none"))
			nextWord = now.Add(5 * time.Second)
		}
		time.Sleep(pause)
	}
}

func listOr(words []string, none string) string {
	if len(words) == 0 {
		return none
	}
	return strings.Join(words, ", ")
}

func (b *bootRun) mountBootPartition() error {
	if err := b.loader.Load("nls_cp437", "nls_ascii", "vfat", "loop", "squashfs", "overlay", "ext4"); err != nil {
		return err
	}
	if err := mountAt(b.facts.ESP, bootfacts.ESPDir, "vfat", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "umask=0077"); err != nil {
		return err
	}
	b.facts.Format, b.facts.Version = 1, b.args.version
	block, err := os.ReadFile(bootfacts.ESPDir + "/grub/grubenv")
	if err == nil {
		var env grubenv.Env
		if env, err = grubenv.Parse(block); err == nil {
			b.facts.Good, b.facts.Try, b.facts.Tries = env.Good, env.Try, env.Tries
			b.facts.Trial = env.OnTrial(b.args.version)
		}
	}
	if err != nil {
		b.out.Say("boot counting is off: %v", err) // GRUB got this far, so nothing is lost
	}
	return nil
}

// mountLayers mounts each layer of the version and, below lowerDir, their sum.
func (b *bootRun) mountLayers() error {
	file := filepath.Join(bootfacts.ESPDir, "images", b.args.version, "manifest.json")
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("version %s is not on the boot partition: %w", b.args.version, err)
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if len(m.Layers) == 0 {
		return fmt.Errorf("%s names no layers", file)
	}
	for i, layer := range m.Layers {
		dir := fmt.Sprintf("%s/%d-%s", layersDir, i, layer.Name)
		if err := mountLayer(filepath.Join(bootfacts.ESPDir, layer.File()), layer.Size, dir); err != nil {
			return fmt.Errorf("layer %s: %w", layer.Name, err)
		}
		b.facts.Layers = append(b.facts.Layers, layer.File())
		b.mounts = append([]string{dir}, b.mounts...)
	}
	if len(b.mounts) == 1 {
		err = bind(b.mounts[0], lowerDir)
	} else {
		err = mountAt("lower", lowerDir, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(b.mounts, ":"))
	}
	if err != nil {
		return err
	}
	text, err = os.ReadFile(filepath.Join(lowerDir, manifest.RolePath))
	if err != nil {
		return fmt.Errorf("the layers hold no role marker: %w", err)
	}
	if b.role, err = manifest.ParseRole(text); err != nil {
		return fmt.Errorf("/%s: %w", manifest.RolePath, err)
	}
	b.facts.Role = b.role.Name
	return nil
}

func (b *bootRun) prepareState() error {
	for _, dir := range []string{"dev", "proc"} {
		if err := bind("/"+dir, filepath.Join(lowerDir, dir)); err != nil {
			return err
		}
		defer unix.Unmount(filepath.Join(lowerDir, dir), unix.MNT_DETACH)
	}
	var id gpt.GUID
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	var err error
	if b.facts.State, err = state.Prepare(b.disk, b.disk, id, runInLower, b.out.Say); err != nil {
		return err
	}
	s := &b.facts.State
	if err := mountAt(s.Device, bootfacts.StateDir, "ext4", 0, "errors=remount-ro"); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Dir(bootfacts.StateDir), 0o755); err != nil {
		return err
	}
	grown, err := state.GrowFS(bootfacts.StateDir, *s)
	if err != nil {
		// The node works with the room that it has; the agent reports it.
		b.out.Say("%v", err)
	}
	s.Grown = s.Grown || grown
	b.stateMounted = true
	if s.Reset, err = state.Reset(bootfacts.StateDir, b.out.Say); err != nil {
		return fmt.Errorf("factory reset: %w", err)
	}
	return nil
}

// runInLower runs a program of the layers, with the layers as its root.
func runInLower(program string, args ...string) ([]byte, int, error) {
	cmd := exec.Command(program, args...)
	cmd.Path, cmd.Err = program, nil // exec.Command looks in the wrong root
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LANG=C"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: lowerDir}
	out, err := cmd.CombinedOutput()
	var status *exec.ExitError
	if errors.As(err, &status) && status.Exited() {
		return out, status.ExitCode(), nil
	}
	if err != nil {
		return out, -1, fmt.Errorf("running %s of the base layer: %w", program, err)
	}
	return out, 0, nil
}

// mountRoot lays the version's writable upper directory over its layers.
func (b *bootRun) mountRoot() error {
	upper := filepath.Join(bootfacts.StateDir, "upper", b.args.version)
	for _, dir := range []string{"fs", "work"} {
		if err := os.MkdirAll(filepath.Join(upper, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(bootfacts.StateDir, "upper"), 0o700); err != nil {
		return err
	}
	// index, metacopy and redirect_dir would tie the upper to these very
	// layers, or make files in it that a reader of the upper alone misses.
	return mountAt("slipway", rootDir, "overlay", 0, fmt.Sprintf(
		"lowerdir=%s,upperdir=%s/fs,workdir=%s/work,index=off,metacopy=off,redirect_dir=off",
		strings.Join(b.mounts, ":"), upper, upper))
}

func (b *bootRun) bindStateDirs() error {
	dirs, err := state.Dirs(b.role.State)
	if err != nil {
		return err
	}
	data := filepath.Join(bootfacts.StateDir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	if err := state.Seed(data, lowerDir, dirs); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := bind(filepath.Join(data, dir), filepath.Join(rootDir, dir)); err != nil {
			return fmt.Errorf("state directory %s: %w", dir, err)
		}
	}
	b.facts.State.Dirs = dirs
	id, err := state.MachineID(bootfacts.StateDir)
	if err != nil {
		return err
	}
	return state.InstallMachineID(rootDir, id)
}

func (b *bootRun) writeFacts() error {
	b.facts.Millis = time.Since(b.started).Milliseconds()
	text, err := json.MarshalIndent(b.facts, "", "  ")
	if err != nil {
		return err
	}
	b.out.Say("handing over to systemd after %d ms", b.facts.Millis)
	return os.WriteFile(bootfacts.Path, append(text, '\n'), 0o644)
}

// switchRoot moves what is mounted into the new root, empties the initramfs,
// whose memory would else stay taken, and becomes systemd.
func (b *bootRun) switchRoot() error {
	if err := halt.Install("/init"); err != nil {
		b.out.Say("the machine will not end cleanly: %v", err)
	}
	if err := unix.Unmount(lowerDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", lowerDir, err)
	}
	if err := os.Remove(lowerDir); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		to := rootDir + dir
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, to, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s into the root file system: %w", dir, err)
		}
	}
	for _, dir := range []string{"/usr", "/init"} {
		if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Chdir(rootDir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("making the root file system /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	err := unix.Exec(systemd, []string{"/sbin/init"}, []string{"PATH=/usr/sbin:/usr/bin", "TERM=linux"})
	return fmt.Errorf("starting %s: %w", systemd, err)
}
