package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Names of the files in a machine's directory. QEMU runs in that directory and
// is given these names as they stand, which keeps its socket path below the
// 108 bytes of sockaddr_un, however deep the directory lies.
const (
	systemDisk   = "disk.qcow2"
	serialLog    = "serial.log"
	serialSocket = "serial.sock"
	qemuLog      = "qemu.log"
	uefiCode     = "ovmf-code.fd"
	uefiVars     = "ovmf-vars.fd"
)

// The child's first file descriptors after stdin, stdout and stderr.
const (
	qmpFD = 3
	qgaFD = 4
	netFD = 5 // the first of the NICs on a switch; then comes a volatile disk
)

// scsiBus is where disks are plugged in while the machine runs.
const scsiBus = "hot.0"

// opt escapes a value inside a comma-separated QEMU option.
func opt(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// args is QEMU's command line for a completed VM.
func args(vm VM, accel Accel) ([]string, error) {
	a := []string{
		"-nodefaults", "-no-user-config",
		"-name", vm.Name + ",process=" + clip("vm-"+vm.Name),
		"-machine", machine(vm.Firmware),
		"-uuid", uuidFor(vm.Name),
		"-smp", fmt.Sprint(vm.CPUs),
		"-m", fmt.Sprintf("%dM", vm.Memory>>20),
		"-rtc", "base=" + clock(vm.Clock),
		"-display", "none", "-vga", "std",
		"-boot", "strict=on",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=serial0,path=" + serialSocket + ",server=on,wait=off,logfile=" + serialLog + ",logappend=on",
		"-serial", "chardev:serial0",
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=qga,fd=%d", qgaFD),
		"-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
		"-device", "virtio-rng-pci",
		"-device", "virtio-scsi-pci,id=" + strings.TrimSuffix(scsiBus, ".0"),
	}
	a = append(a, accel.args(vm.CPUs, vm.WideAtomics)...)
	a = append(a, firmwareArgs(vm)...)
	if vm.DMISerial != "" {
		a = append(a, "-smbios", "type=1,serial="+opt(vm.DMISerial))
	}
	if vm.Image != "" {
		a = append(a, "-blockdev", systemBlockdev(vm))
		a = append(a, systemDevice(vm)...)
	}
	for i, d := range vm.Disks {
		node := fmt.Sprintf("extra%d", i)
		a = append(a,
			"-blockdev", blockdev(node, "qcow2", d.File, false),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", node, opt(clip(d.Serial))))
	}
	seeds, err := seedArgs(vm.Seeds)
	if err != nil {
		return nil, err
	}
	a = append(a, seeds...)
	fd := netFD
	for i, n := range vm.NICs {
		backend := userNet(i, n)
		if n.Switch != nil {
			backend = fmt.Sprintf("stream,id=net%d,server=off,addr.type=fd,addr.str=%d", i, fd)
			fd++
		}
		a = append(a, "-netdev", backend, "-device", fmt.Sprintf("%s,netdev=net%d,mac=%s,romfile=", n.Model, i, n.MAC))
	}
	return a, nil
}

// clock is a time in the form that QEMU takes.
func clock(t time.Time) string {
	if t.IsZero() {
		return "utc"
	}
	return t.UTC().Format("2006-01-02T15:04:05")
}

func machine(f Firmware) string {
	if f == SecureBoot {
		return "q35,smm=on"
	}
	return "q35"
}

// blockdev leaves out the host's own flush: a power cut here is the end of
// QEMU, which the host's page cache outlives (see the package comment), and
// the flush of a busy host disk takes longer than the guest's whole boot.
func blockdev(node, format, file string, readOnly bool) string {
	s := fmt.Sprintf("driver=%s,node-name=%s,file.driver=file,file.filename=%s,cache.no-flush=on,discard=unmap", format, node, opt(file))
	if readOnly {
		s += ",read-only=on"
	}
	return s
}

// systemBlockdev is the overlay: in its file, or on the disk with the cache,
// which is what must hear the guest's flushes.
func systemBlockdev(vm VM) string {
	if !vm.Volatile {
		return blockdev("system", "qcow2", systemDisk, false)
	}
	return fmt.Sprintf("driver=qcow2,node-name=system,file.driver=nbd,file.server.type=fd,file.server.str=%d,discard=unmap", vm.diskFD())
}

// diskFD is the descriptor behind those of the NICs.
func (vm VM) diskFD() int {
	fd := netFD
	for _, n := range vm.NICs {
		if n.Switch != nil {
			fd++
		}
	}
	return fd
}

func systemDevice(vm VM) []string {
	props := fmt.Sprintf("drive=system,serial=%s,bootindex=1", opt(vm.DiskSerial)) // 0 is a direct kernel's
	switch vm.DiskBus {
	case PVSCSI:
		return []string{"-device", "pvscsi,id=pvscsi", "-device", "scsi-hd,bus=pvscsi.0," + props}
	case SATA:
		return []string{"-device", "ide-hd,bus=ide.0," + props}
	case NVMe:
		return []string{"-device", "nvme," + props}
	default:
		return []string{"-device", "virtio-blk-pci," + props}
	}
}

func firmwareArgs(vm VM) []string {
	var a []string
	if vm.Firmware != BIOS {
		a = append(a,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+uefiCode,
			"-drive", "if=pflash,unit=1,format=raw,file="+uefiVars)
	}
	if vm.Firmware == SecureBoot {
		// Without this the guest could write the keys' variables around the firmware.
		a = append(a, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	if vm.Kernel != "" {
		a = append(a, "-kernel", vm.Kernel, "-append", vm.Append)
		if vm.Initrd != "" {
			a = append(a, "-initrd", vm.Initrd)
		}
	}
	return a
}

// seedArgs gives every machine one CD drive, empty or not, so that a medium can
// be inserted later; AHCI ports 1 to 5 take CDs.
func seedArgs(seeds []string) ([]string, error) {
	var a []string
	cds := 0
	for i, path := range seeds {
		iso, err := isISO(path)
		if err != nil {
			return nil, fault.New(fault.Input, "seed %s: %w", path, err)
		}
		node := fmt.Sprintf("seed%d", i)
		a = append(a, "-blockdev", blockdev(node, "raw", path, true))
		if !iso {
			a = append(a, "-device", "virtio-blk-pci,drive="+node+",serial="+opt(clip(filepath.Base(path))))
			continue
		}
		if cds++; cds > 5 {
			return nil, fault.New(fault.Usage, "seed %s: a machine takes at most 5 CDs", path)
		}
		a = append(a, "-device", fmt.Sprintf("ide-cd,id=cd%d,bus=ide.%d,drive=%s", cds-1, cds, node))
	}
	if cds == 0 {
		a = append(a, "-device", "ide-cd,id=cd0,bus=ide.1")
	}
	return a, nil
}

func userNet(i int, n NIC) string {
	net := fmt.Sprintf("user,id=net%d", i)
	if !n.Open {
		net += ",restrict=on"
	}
	return net
}
