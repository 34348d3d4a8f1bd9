package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/slipwayhq/slipway/builder/boot"
	"github.com/slipwayhq/slipway/builder/inspect"
	"github.com/slipwayhq/slipway/internal/fault"
)

// probeKernel is the kernel that the KVM probe boots: the machine's own.
type probeKernel struct {
	// name tells kernels apart and is cheap to know, unlike the kernel's bytes.
	name string
	read func(ctx context.Context) ([]byte, error)
}

// maxKernel bounds what is taken for a kernel.
const maxKernel = 256 << 20

// kernelOf finds the kernel that a VM will start: the one that is given, or
// that of the image's current version.
func kernelOf(vm VM) (probeKernel, error) {
	if vm.Kernel != "" {
		st, err := os.Stat(vm.Kernel)
		if err != nil {
			return probeKernel{}, fault.New(fault.Input, "kernel: %w", err)
		}
		return probeKernel{
			name: fmt.Sprintf("%s %d %d", vm.Kernel, st.Size(), st.ModTime().UnixNano()),
			read: func(context.Context) ([]byte, error) { return os.ReadFile(vm.Kernel) },
		}, nil
	}
	im, err := inspect.Open(vm.Image)
	if err != nil {
		return probeKernel{}, err
	}
	defer im.Close()
	version := im.Current()
	if version == nil {
		return probeKernel{}, fault.New(fault.Input, "%s holds no version", vm.Image)
	}
	esp, err := bootPartition(im)
	if err != nil {
		return probeKernel{}, err
	}
	return probeKernel{
		name: version.Kernel,
		read: func(ctx context.Context) ([]byte, error) {
			return readFromESP(ctx, vm, im.Format, esp, path.Join(boot.VersionDir(version.Manifest.Version), "vmlinuz"))
		},
	}, nil
}

// espType is the type of an EFI system partition (UEFI 2.10, table 5.7).
const espType = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

func bootPartition(im *inspect.Image) (inspect.Partition, error) {
	for _, p := range im.Partitions {
		if p.Type == espType {
			return p, nil
		}
	}
	return inspect.Partition{}, fault.New(fault.Input, "%s has no boot partition", im.Path)
}

// readFromESP has QEMU copy the boot partition out of the image, whatever its
// format, and reads one file of it.
func readFromESP(ctx context.Context, vm VM, format string, esp inspect.Partition, name string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "slipway-esp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "esp.img")
	source := fmt.Sprintf("driver=raw,offset=%d,size=%d,file.driver=%s,file.file.filename=%s", esp.Start, esp.Size, format, opt(vm.Image))
	if err := runImg(ctx, "convert", "--image-opts", source, "-O", "raw", copied); err != nil {
		return nil, err
	}
	disk, err := file.OpenFromPath(copied, true)
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	fs, err := fat32.Read(disk, esp.Size, 0, 512)
	if err != nil {
		return nil, fmt.Errorf("boot partition of %s: %w", vm.Image, err)
	}
	f, err := fs.OpenFile("/"+name, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", name, vm.Image, err)
	}
	defer f.Close()
	kernel, err := io.ReadAll(io.LimitReader(f, maxKernel+1))
	if err == nil && len(kernel) > maxKernel {
		err = fmt.Errorf("it is larger than %d MiB", maxKernel>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", name, vm.Image, err)
	}
	return kernel, nil
}
