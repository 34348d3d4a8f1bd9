package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/slipwayhq/slipway/builder/inspect"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	qemuSystem = "qemu-system-x86_64"
	qemuImg    = "qemu-img"
)

// firmwareDir is where Debian's package ovmf puts its builds.
const firmwareDir = "/usr/share/OVMF"

// Debian's names: the 4M builds have room for today's revocation lists, and
// "ms" variables hold Microsoft's keys with Secure Boot switched on.
var firmwareFiles = map[Firmware][2]string{
	UEFI:       {"OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"},
	SecureBoot: {"OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"},
}

// checkTools says at once what the host lacks.
func checkTools(f Firmware) error {
	if runtime.GOOS != "linux" {
		return notHere()
	}
	var what, packages []string
	for tool, pkg := range map[string]string{qemuSystem: "qemu-system-x86", qemuImg: "qemu-utils"} {
		if _, err := exec.LookPath(tool); err != nil {
			what, packages = append(what, tool), append(packages, pkg)
		}
	}
	for _, file := range firmwareFiles[f] {
		if file == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(firmwareDir, file)); err != nil {
			what, packages = append(what, file), append(packages, "ovmf")
			break
		}
	}
	if what == nil {
		return nil
	}
	return fault.New(fault.Missing, "a virtual machine needs %s", strings.Join(what, ", ")).
		WithMend("run: apt-get install --no-install-recommends %s", strings.Join(packages, " "))
}

func notHere() error {
	return fault.New(fault.Missing, "virtual machines of a lab need Linux, and this is %s", runtime.GOOS).
		WithMend("run it on Linux; building from finished layers, and all that talks to a running cluster, works here")
}

// prepare makes the machine's directory complete: overlay, further disks and
// UEFI variables, each only if it is not there yet.
func prepare(ctx context.Context, vm VM) error {
	if err := os.MkdirAll(vm.Dir, 0o755); err != nil {
		return err
	}
	if vm.Image != "" {
		if err := makeOverlay(ctx, vm); err != nil {
			return err
		}
		if vm.Volatile {
			if err := makeRoom(ctx, filepath.Join(vm.Dir, systemDisk)); err != nil {
				return err
			}
		}
	}
	for _, d := range vm.Disks {
		if exists(d.File) {
			continue
		}
		if err := runImg(ctx, "create", "-q", "-f", "qcow2", d.File, fmt.Sprint(d.Size)); err != nil {
			return err
		}
	}
	if vm.Firmware == BIOS {
		return nil
	}
	for i, name := range []string{uefiCode, uefiVars} {
		to := filepath.Join(vm.Dir, name)
		if exists(to) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(firmwareDir, firmwareFiles[vm.Firmware][i]))
		if err != nil {
			return err
		}
		if err := atomicfile.WriteBytes(to, 0o644, content); err != nil {
			return err
		}
	}
	return nil
}

func makeOverlay(ctx context.Context, vm VM) error {
	overlay := filepath.Join(vm.Dir, systemDisk)
	identity, err := imageIdentity(vm.Image)
	if err != nil {
		return err
	}
	note := overlay + ".image"
	if exists(overlay) {
		return sameImage(vm, note, identity)
	}
	info, err := imageInfo(ctx, vm.Image, vm.Format)
	if err != nil {
		return err
	}
	a := []string{"create", "-q", "-f", "qcow2", "-b", vm.Image, "-F", info.Format, overlay}
	if vm.DiskSize > info.VirtualSize {
		a = append(a, fmt.Sprint(vm.DiskSize))
	}
	if err := atomicfile.WriteBytes(note, 0o644, []byte(identity+"\n")); err != nil {
		return err
	}
	return runImg(ctx, a...)
}

// imageIdentity tells an image from another one at the same path: by the version
// in it, which stands for its content, or, for what is no image of slipway's, by
// size and date.
func imageIdentity(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fault.New(fault.Input, "disk image: %w", err)
	}
	if im, err := inspect.Open(path); err == nil {
		defer im.Close()
		if v := im.Current(); v != nil {
			return "version " + v.Manifest.Version, nil
		}
	}
	return fmt.Sprintf("size %d, changed at %d", st.Size(), st.ModTime().UnixNano()), nil
}

// sameImage refuses an overlay whose image has been replaced: half of its content
// would come from the one and half from the other.
func sameImage(vm VM, note, identity string) error {
	before, err := os.ReadFile(note)
	if err != nil {
		return err
	}
	if was := strings.TrimSpace(string(before)); was != identity {
		return fault.New(fault.Failed, "%s was replaced since the disk was made over it (%s, now %s)", vm.Image, was, identity).
			WithMend("put the old image back, or begin anew with the new one: slipway down --destroy, for a lab")
	}
	return nil
}

// info is the part of qemu-img's report that the lab uses.
type info struct {
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
}

func imageInfo(ctx context.Context, path, format string) (info, error) {
	var i info
	if _, err := os.Stat(path); err != nil {
		return i, fault.New(fault.Input, "disk image: %w", err)
	}
	a := []string{"info", "--output=json"}
	if format != "" {
		a = append(a, "-f", format)
	}
	out, err := exec.CommandContext(ctx, qemuImg, append(a, path)...).Output()
	if err != nil {
		return i, imgError("info", err)
	}
	return i, json.Unmarshal(out, &i)
}

func runImg(ctx context.Context, a ...string) error {
	_, err := exec.CommandContext(ctx, qemuImg, a...).Output()
	if err != nil {
		return imgError(a[0], err)
	}
	return nil
}

func imgError(verb string, err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fault.New(fault.Failed, "qemu-img %s: %s", verb, strings.TrimSpace(string(exit.Stderr)))
	}
	return fmt.Errorf("qemu-img %s: %w", verb, err)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
