package lab

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// Firmware is what the machine runs before the boot loader.
type Firmware string

const (
	BIOS       Firmware = "bios"       // SeaBIOS
	UEFI       Firmware = "uefi"       // OVMF, Secure Boot off
	SecureBoot Firmware = "secureboot" // OVMF that enforces Microsoft's keys
)

// Bus is how the system disk is attached.
type Bus string

const (
	VirtioBlk Bus = "virtio"
	PVSCSI    Bus = "pvscsi" // what VMware gives
	SATA      Bus = "sata"
	NVMe      Bus = "nvme"
)

// VM describes a machine. Only Name and Image (or Kernel) must be given.
type VM struct {
	Name   string // letters, digits, hyphens
	Image  string // the disk it boots from; it is never written
	Format string // qcow2, raw, vmdk; empty: qemu-img is asked

	// Kernel, if set, boots this kernel directly, with no firmware or boot loader of the image.
	Kernel, Initrd, Append string

	// WideAtomics says that programs of the guest need the instruction cmpxchg16b. HAProxy does: it
	// is compiled in and dies of an invalid opcode without. It makes TCG slower where there is
	// more than one CPU, see accel.go.
	WideAtomics bool

	Firmware   Firmware // default BIOS
	CPUs       int      // default 2
	Memory     int64    // bytes, default 2 GiB
	DiskSize   int64    // bytes; the overlay grows to it if the image is smaller
	DiskSerial string   // default "slipway-NAME"; a licence may be bound to it
	DiskBus    Bus      // default VirtioBlk
	Disks      []Disk   // further disks

	// Volatile gives the system disk a write cache that a power cut empties (package nbd). Without
	// it what the guest wrote and did not flush mostly survives, which no real disk promises.
	Volatile bool
	// Tear, unless 0, lets a power cut take only some sectors of that cache, by a chance that begins here.
	Tear uint64

	// Seeds are metadata media: ISO 9660 files become CDs, others (vfat) read-only disks.
	Seeds     []string
	DMISerial string // SMBIOS system serial number, such as "ds=nocloud;s=http://10.0.2.2:8000/"

	NICs []NIC // default: one virtio NIC on an isolated user network

	// Clock is what the hardware's clock says when the power comes, and goes on from; the zero value
	// is the host's time.
	Clock time.Time

	// Dir holds the overlay, the logs and the UEFI variables. An overlay that is there already is
	// used as it stands, so that a machine can be started again by another process.
	Dir string
	// CacheDir keeps what the KVM probe found; default: slipway's directory in the user's cache.
	CacheDir string
	// Patience bounds every single wait; default 60 s with KVM, 8 min with TCG.
	Patience time.Duration
	Log      logrus.FieldLogger // default: logrus's standard logger
}

// Disk is a further disk of a machine, made empty in its directory if File does not exist.
type Disk struct {
	File   string // default: NAME.qcow2 in the machine's directory
	Serial string // explicit, at most 20 bytes; names the disk in /dev/disk/by-id
	Size   int64  // bytes, when it is made
}

// NIC is a network card: on a port of a switch, where the guest meets other
// machines, or else on a QEMU user-mode network of its own, where it gets
// 10.0.2.15 by DHCP and the host is 10.0.2.2.
type NIC struct {
	Model string // default virtio-net-pci; or e1000, e1000e, vmxnet3
	MAC   string // default: derived from the machine's name

	// Switch, if set, has a port for this card for as long as the machine has
	// power. Port says in which VLANs; PortName defaults to NAME/INDEX.
	Switch   *ether.Switch
	Port     ether.PortConfig
	PortName string

	// Open lets the guest reach the host and beyond, on the user-mode network only.
	Open bool
}

// Serial numbers on virtio disks have room for 20 bytes (VIRTIO 1.2, 5.2.6.1, VIRTIO_BLK_T_GET_ID).
const maxSerial = 20

var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)

// complete fills in defaults and checks what can be checked without a machine.
func (vm VM) complete() (VM, error) {
	switch {
	case !nameSyntax.MatchString(vm.Name):
		return vm, fault.New(fault.Usage, "VM name %q: only letters, digits and hyphens are allowed", vm.Name)
	case vm.Image == "" && vm.Kernel == "":
		return vm, fault.New(fault.Usage, "VM %s: neither an image nor a kernel to boot", vm.Name)
	case vm.Volatile && vm.Image == "":
		return vm, fault.New(fault.Usage, "VM %s: it has no system disk that could be volatile", vm.Name)
	case vm.Dir == "":
		return vm, fault.New(fault.Usage, "VM %s: no directory for its disk and logs", vm.Name)
	}
	if vm.Firmware == "" {
		vm.Firmware = BIOS
	}
	if vm.CPUs == 0 {
		vm.CPUs = 2
	}
	if vm.Memory == 0 {
		vm.Memory = 2 << 30
	}
	if vm.DiskBus == "" {
		vm.DiskBus = VirtioBlk
	}
	if vm.DiskSerial == "" {
		vm.DiskSerial = clip("slipway-" + vm.Name)
	}
	if vm.NICs == nil {
		vm.NICs = []NIC{{}}
	}
	vm.NICs = append([]NIC(nil), vm.NICs...)
	for i := range vm.NICs {
		if vm.NICs[i].Model == "" {
			vm.NICs[i].Model = "virtio-net-pci"
		}
		if vm.NICs[i].MAC == "" {
			vm.NICs[i].MAC = macFor(vm.Name, i)
		}
		if vm.NICs[i].PortName == "" {
			vm.NICs[i].PortName = fmt.Sprintf("%s/%d", vm.Name, i)
		}
		if n := vm.NICs[i]; n.Switch != nil && n.Open {
			return vm, fault.New(fault.Usage, "VM %s: NIC %d is on a switch, but Open is for the user-mode network", vm.Name, i)
		}
	}
	vm.Disks = append([]Disk(nil), vm.Disks...)
	for i := range vm.Disks {
		d := &vm.Disks[i]
		if d.Serial == "" {
			d.Serial = clip(fmt.Sprintf("disk%d-%s", i+1, vm.Name))
		}
		if d.File == "" {
			d.File = filepath.Join(vm.Dir, fmt.Sprintf("disk%d.qcow2", i+1))
		}
	}
	if vm.CacheDir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return vm, fault.New(fault.Missing, "no cache directory: %w", err).WithMend("set HOME or XDG_CACHE_HOME")
		}
		vm.CacheDir = filepath.Join(base, "slipway", "lab")
	}
	if vm.Log == nil {
		vm.Log = logrus.StandardLogger()
	}
	return vm, vm.absolute()
}

// absolute makes the paths independent of the working directory, because QEMU
// runs in the machine's own.
func (vm *VM) absolute() error {
	paths := []*string{&vm.Image, &vm.Kernel, &vm.Initrd, &vm.Dir, &vm.CacheDir}
	vm.Seeds = append([]string(nil), vm.Seeds...)
	for i := range vm.Seeds {
		paths = append(paths, &vm.Seeds[i])
	}
	for i := range vm.Disks {
		paths = append(paths, &vm.Disks[i].File)
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

func clip(serial string) string { return serial[:min(len(serial), maxSerial)] }

// macFor derives a locally administered address (prefix 52:54:00, QEMU's) from
// the machine's name, so that it is the same at every start.
func macFor(name string, index int) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s/%d", name, index))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2])
}

// uuidFor derives the machine's SMBIOS UUID from its name (RFC 9562, 5.8: version 8).
func uuidFor(name string) string {
	h := sha256.Sum256([]byte("uuid/" + name))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}

// isISO says whether a file holds an ISO 9660 file system: its first volume
// descriptor is at sector 16 (ECMA-119, 7.1.1 and 8.1.2).
func isISO(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	id := make([]byte, 5)
	if _, err := f.ReadAt(id, 16*2048+1); err != nil && err != io.EOF {
		return false, err
	}
	return string(id) == "CD001", nil
}
