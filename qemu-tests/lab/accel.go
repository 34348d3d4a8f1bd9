package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Accel is what executes the guest's instructions.
type Accel string

const (
	KVM Accel = "kvm"
	TCG Accel = "tcg" // QEMU's own translator, some ten times slower
)

// AccelEnv names the environment variable that forces an accelerator.
const AccelEnv = "SLIPWAY_ACCEL"

// probeTime is how long a kernel may take to reach its init in KVM; a machine
// where KVM works needs about a second.
const probeTime = 20 * time.Second

// emulated is the processor under TCG: all that QEMU knows, but for AVX. QEMU 7.2
// translates vectors of 256 bits into calls of one function for each instruction,
// and whoever finds AVX uses it: with it, OpenSSL in the guest encrypts with AES-GCM
// a seventh as fast, and hashes with SHA-256 a third as fast, as with older
// instructions; nothing was measured to be slower without.
const emulated = "max,-avx,-avx2,-fma,-f16c"

// args chooses the processor. QEMU 7.2's TCG gets cmpxchg16b wrong when it runs
// the guest's processors on threads of their own: the kernel's allocator, which
// uses the instruction if there is one, then corrupts memory. So it is hidden,
// or, for a guest that cannot do without, the processors take turns on one thread.
// A guest with one processor has nobody to race with, and may have it at no cost.
func (a Accel) args(cpus int, wideAtomics bool) []string {
	switch {
	case a == KVM:
		return []string{"-accel", "kvm", "-cpu", "host"}
	case cpus == 1:
		return []string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", emulated}
	case wideAtomics:
		return []string{"-accel", "tcg,thread=single,tb-size=512", "-cpu", emulated}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=512", "-cpu", emulated + ",-cx16"}
}

// patience is the default deadline of a wait.
func (a Accel) patience() time.Duration {
	if a == KVM {
		return time.Minute
	}
	return 8 * time.Minute
}

// verdict is what a probe found; it is kept so that a machine probes once.
type verdict struct {
	Works  bool   `json:"works"`
	Reason string `json:"reason"`
}

// chooseAccel says what to run the VM with, and why.
func chooseAccel(ctx context.Context, vm VM) (Accel, string, error) {
	switch forced := Accel(os.Getenv(AccelEnv)); forced {
	case KVM, TCG:
		return forced, AccelEnv + " says so", nil
	case "", "auto":
	default:
		return "", "", fault.New(fault.Usage, "%s=%s: want kvm, tcg or auto", AccelEnv, forced)
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, err.Error(), nil
	}
	kvm.Close()
	kernel, err := kernelOf(vm)
	if err != nil {
		return TCG, fmt.Sprintf("no kernel to probe KVM with: %v", err), nil
	}
	v, err := probeOnce(ctx, vm.CacheDir, kernel)
	switch {
	case err != nil:
		return "", "", err
	case v.Works:
		return KVM, v.Reason, nil
	}
	return TCG, v.Reason, nil
}

// probeOnce looks for the verdict of an earlier probe with this kernel, this
// QEMU and since this boot of the host, and otherwise probes. Only one process
// does so at a time.
func probeOnce(ctx context.Context, cacheDir string, kernel probeKernel) (verdict, error) {
	version, err := exec.CommandContext(ctx, qemuSystem, "--version").Output()
	if err != nil {
		return verdict{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return verdict{}, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s", kernel.name, version, boot)
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return verdict{}, err
	}
	path := filepath.Join(cacheDir, fmt.Sprintf("kvm-%x.json", h.Sum(nil)[:12]))
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return verdict{}, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return verdict{}, os.NewSyscallError("flock", err)
	}
	var v verdict
	if data, err := os.ReadFile(path); err == nil && json.Unmarshal(data, &v) == nil {
		return v, nil
	}
	vmlinuz, err := kernel.read(ctx)
	if err != nil {
		return verdict{}, err
	}
	if v, err = probe(ctx, KVM, vmlinuz, probeTime); err != nil {
		return verdict{}, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return verdict{}, err
	}
	return v, atomicfile.WriteBytes(path, 0o644, data)
}

// Probe says whether an accelerator runs the VM's kernel, by booting it with
// nothing but an init that says so. It asks no cache.
func Probe(ctx context.Context, accel Accel, vm VM) (works bool, reason string, err error) {
	if vm, err = vm.complete(); err != nil {
		return false, "", err
	}
	if err := checkTools(BIOS); err != nil {
		return false, "", err
	}
	kernel, err := kernelOf(vm)
	if err != nil {
		return false, "", err
	}
	vmlinuz, err := kernel.read(ctx)
	if err != nil {
		return false, "", err
	}
	limit := probeTime
	if accel == TCG {
		limit = TCG.patience()
	}
	v, err := probe(ctx, accel, vmlinuz, limit)
	return v.Works, v.Reason, err
}

// probe boots kernel, with an init that prints a word and powers off.
func probe(ctx context.Context, accel Accel, kernel []byte, limit time.Duration) (verdict, error) {
	dir, err := os.MkdirTemp("", "slipway-kvm-probe-")
	if err != nil {
		return verdict{}, err
	}
	defer os.RemoveAll(dir)
	archive, err := probeInitramfs()
	if err != nil {
		return verdict{}, err
	}
	kernelFile, initrdFile := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	if err := errors.Join(os.WriteFile(kernelFile, kernel, 0o600), os.WriteFile(initrdFile, archive, 0o600)); err != nil {
		return verdict{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var console bytes.Buffer
	a := append([]string{"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-smp", fmt.Sprint(probeCPUs), "-m", "512",
		"-serial", "stdio", "-no-reboot", "-kernel", kernelFile, "-initrd", initrdFile,
		"-append", "console=ttyS0 panic=-1"}, accel.args(probeCPUs, false)...)
	cmd := exec.CommandContext(bounded, qemuSystem, a...)
	cmd.Stdout = &console
	cmd.Stderr = &console
	p, err := startTied(cmd)
	if err != nil {
		return verdict{}, err
	}
	<-p.done
	switch {
	case bytes.Contains(console.Bytes(), []byte(probeWord)):
		return verdict{Works: true, Reason: fmt.Sprintf("a kernel boots in %s", accel)}, nil
	case ctx.Err() != nil:
		return verdict{}, ctx.Err()
	case bounded.Err() != nil:
		return verdict{Reason: fmt.Sprintf("a kernel does not reach its init in %v under %s", limit, accel)}, nil
	}
	last := strings.TrimSpace(console.String())
	return verdict{Reason: fmt.Sprintf("QEMU with %s ended: %s", accel, last[max(0, len(last)-200):])}, nil
}

// probeCPUs is more than one, as in most machines.
const probeCPUs = 2

const probeWord = "slipway: this kernel runs"

// probeInitramfs is an archive with one file, the /init below.
func probeInitramfs() ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	program := probeInit()
	if err := w.WriteHeader(&cpio.Header{Name: "init", Mode: cpio.TypeReg | 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// probeInit assembles a static x86-64 program that writes probeWord to its
// standard output, which is the console, and powers the machine off. It is made
// here because a user of the lab need not have a compiler.
func probeInit() []byte {
	const (
		base       = 0x400000
		headerSize = 64 + 56 // one ELF header, one program header (ELF-64, 3 and 8)
	)
	text := "\n" + probeWord + "\n"
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 28, 0, 0, 0, // lea rsi, [rip+28]: the text, behind the code
		0xba, byte(len(text)), 0, 0, 0, // mov edx, length
		0x0f, 0x05, // syscall
		0xb8, 169, 0, 0, 0, // mov eax, 169 (reboot)
		0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
		0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
		0xba, 0xdc, 0xfe, 0x21, 0x43, // mov edx, LINUX_REBOOT_CMD_POWER_OFF
		0x0f, 0x05, // syscall
		0xeb, 0xfe, // jmp to itself: init must not end
	}
	// The displacement counts from the end of lea to the end of the code.
	code[13] = byte(len(code) - 17)
	size := uint64(headerSize + len(code) + len(text))

	var b bytes.Buffer
	le := func(fields ...any) {
		for _, f := range fields {
			binary.Write(&b, binary.LittleEndian, f) // a Buffer takes everything
		}
	}
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	le(uint16(2), uint16(62), uint32(1), uint64(base+headerSize), uint64(64), uint64(0)) // EXEC, x86-64, entry, phoff, shoff
	le(uint32(0), uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0))
	le(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000)) // LOAD, R+X
	b.Write(code)
	io.WriteString(&b, text)
	return b.Bytes()
}
