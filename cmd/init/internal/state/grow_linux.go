package state

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
)

// ext4ResizeFS is EXT4_IOC_RESIZE_FS of fs/ext4/ext4.h, _IOW('f', 16, __u64):
// what resize2fs asks of a mounted file system.
const ext4ResizeFS = 0x40086610

// GrowFS makes the file system mounted at dir as large as its partition, if it
// lags behind by a megabyte or more. The kernel does it through the journal,
// so that a power cut in between costs nothing.
func GrowFS(dir string, f bootfacts.State) (grown bool, err error) {
	blocks, blockSize, err := fsBlocks(f.Device)
	if err != nil {
		return false, err
	}
	want := uint64(f.Size) / blockSize
	if want*blockSize < blocks*blockSize+1<<20 {
		return false, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&want)))
	runtime.KeepAlive(&want)
	if errno != 0 {
		return false, fmt.Errorf("growing the state file system to %d blocks: %w", want, errno)
	}
	return true, nil
}
