package inspect

import (
	"encoding/binary"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Partition is one entry of the disk's table.
type Partition struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	Type   string `json:"type"` // GUID
	GUID   string `json:"guid"`
	Start  int64  `json:"start"` // bytes
	Size   int64  `json:"size"`  // bytes
}

// maxEntries bounds a partition table: 128 is usual.
const maxEntries = 1024

// readPartitions reads the GPT. The header is checked first, since go-diskfs takes
// memory for as many entries as it says.
func readPartitions(disk io.ReaderAt, size int64) ([]Partition, error) {
	h := make([]byte, sector)
	if _, err := disk.ReadAt(h, sector); err != nil {
		return nil, fault.New(fault.Integrity, "partition table: %w", err)
	}
	le := binary.LittleEndian
	if string(h[:8]) != "EFI PART" {
		return nil, fault.New(fault.Integrity, "the disk has no GUID partition table")
	}
	if count, each := le.Uint32(h[80:]), le.Uint32(h[84:]); count == 0 || count > maxEntries || each != gpt.PartitionEntrySize {
		return nil, fault.New(fault.Integrity, "partition table: %d entries of %d bytes make no sense", count, each)
	}
	table, err := gpt.Read(&diskFile{io.NewSectionReader(disk, 0, size)}, sector, sector)
	if err != nil {
		return nil, fault.New(fault.Integrity, "partition table: %w", err)
	}
	var out []Partition
	for i, p := range table.Partitions {
		if p == nil || p.Type == gpt.Unused {
			continue
		}
		if p.End < p.Start || p.End >= uint64(size/sector) {
			return nil, fault.New(fault.Integrity, "partition %d, sectors %d to %d, is not on the disk of %d sectors", i+1, p.Start, p.End, size/sector)
		}
		out = append(out, Partition{
			Number: i + 1, Name: p.Name, Type: strings.ToLower(string(p.Type)), GUID: strings.ToLower(p.GUID),
			Start: int64(p.Start) * sector, Size: int64(p.End-p.Start+1) * sector,
		})
	}
	return out, nil
}

// diskFile lets go-diskfs read a disk that is no file of its own.
type diskFile struct{ *io.SectionReader }

func (d *diskFile) Stat() (fs.FileInfo, error) { return diskInfo{d.Size()}, nil }
func (d *diskFile) Close() error               { return nil }

type diskInfo struct{ size int64 }

func (i diskInfo) Name() string       { return "disk" }
func (i diskInfo) Size() int64        { return i.size }
func (i diskInfo) Mode() os.FileMode  { return 0o400 }
func (i diskInfo) ModTime() time.Time { return time.Time{} }
func (i diskInfo) IsDir() bool        { return false }
func (i diskInfo) Sys() any           { return nil }
