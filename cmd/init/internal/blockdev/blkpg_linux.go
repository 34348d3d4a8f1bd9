package blockdev

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

// Operations of BLKPG, linux/blkpg.h.
const (
	blkpgAdd    = 1
	blkpgResize = 3
)

// AddPartition makes the kernel know Entries[index]. The table as a whole
// cannot be read anew while the boot partition is mounted.
func (d *Disk) AddPartition(index int) error { return d.blkpg(blkpgAdd, index) }

// ResizePartition makes the kernel know the new end of Entries[index].
func (d *Disk) ResizePartition(index int) error { return d.blkpg(blkpgResize, index) }

func (d *Disk) blkpg(op int32, index int) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	e := d.Table.Entries[index]
	part := unix.BlkpgPartition{
		Start:  int64(e.First) * gpt.SectorSize,
		Length: int64(e.Last-e.First+1) * gpt.SectorSize,
		Pno:    int32(index + 1),
	}
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(&part)
	if errno != 0 {
		return fmt.Errorf("telling the kernel of partition %d of %s: %w", index+1, d.Path, errno)
	}
	return nil
}
