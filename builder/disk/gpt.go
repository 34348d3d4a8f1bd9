package disk

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"

	"github.com/slipwayhq/slipway/internal/fault"
)

// DiskGUID is the GUID of the disk made from seed.
func DiskGUID(seed [32]byte) string { return derive(seed, "disk").String() }

// ESPGUID is the GUID (Linux calls it PARTUUID) of the EFI system partition, in
// the lower-case form that udev and the kernel print.
func ESPGUID(seed [32]byte) string { return derive(seed, "esp").String() }

// BIOSGUID is the GUID of the partition that holds GRUB's core image.
func BIOSGUID(seed [32]byte) string { return derive(seed, "bios").String() }

// derive makes a UUID of version 8 (RFC 9562, section 5.8: "custom"), which is
// for values that are computed rather than random.
func derive(seed [32]byte, what string) uuid.UUID {
	sum := sha256.Sum256(append(seed[:], "slipway "+what...))
	u := uuid.UUID(sum[:16])
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

// partitionTable returns the protective MBR, with boot in its code area, and
// both copies of the GPT.
func partitionTable(in LayoutInput, boot []byte) ([]Extent, error) {
	t := &gpt.Table{
		LogicalSectorSize: sectorSize, PhysicalSectorSize: sectorSize,
		GUID: DiskGUID(in.Seed), ProtectiveMBR: true,
		Partitions: []*gpt.Partition{
			{Index: 1, Type: gpt.BIOSBoot, Name: "slipway-bios", GUID: BIOSGUID(in.Seed),
				Start: biosStart / sectorSize, Size: biosSize},
			{Index: 2, Type: gpt.EFISystemPartition, Name: "slipway-esp", GUID: ESPGUID(in.Seed),
				Start: espStart / sectorSize, Size: uint64(in.ESPSize)},
		},
	}
	rec := &recorder{size: in.Size}
	if err := t.Write(rec, in.Size); err != nil {
		return nil, fault.New(fault.Internal, "laying out the partition table: %w", err)
	}
	if len(boot) > 0 {
		rec.extents = append(rec.extents, bytesAt(0, boot))
	}
	return rec.extents, nil
}

// recorder stands in for a disk while go-diskfs writes a partition table to it
// and keeps what was written as extents.
type recorder struct {
	size    int64
	extents []Extent
}

var errWriteOnly = errors.New("the partition table is only written, not read")

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.extents = append(r.extents, bytesAt(off, append([]byte(nil), p...)))
	return len(p), nil
}

func (r *recorder) Seek(int64, int) (int64, error)        { return 0, errWriteOnly }
func (r *recorder) ReadAt(p []byte, _ int64) (int, error) { return 0, errWriteOnly }
func (r *recorder) Read(p []byte) (int, error)            { return 0, errWriteOnly }
func (r *recorder) Stat() (fs.FileInfo, error)            { return nil, errWriteOnly }
func (r *recorder) Close() error                          { return nil }

var _ io.WriterAt = (*recorder)(nil)
