package catalog

import (
	"maps"
	"slices"

	"github.com/slipwayhq/slipway/internal/fault"
)

// PartSize is the largest part of a file: what a FAT file system holds is below 4 GiB, and
// a damaged part is brought again whole.
const PartSize = 1 << 30

// A volume's file system takes room for more than the bytes of files: they begin on
// sectors (ISO 9660: 2 KiB) or clusters, and have entries in directories.
const (
	sector   = 4 << 10
	perFile  = 512
	overhead = 4 << 20 // the file system itself, the manifest's own head and signature
	perLine  = 200     // a file's line in the manifest
	MinSize  = 16 << 20
)

// Cut is where a piece of a file begins and ends.
type Cut struct {
	File   string // SHA-256 of the whole
	Offset int64
	Size   int64
}

// Lay puts the files on volumes of at most size bytes each, in a fixed order, cutting
// those that are larger than a part. size 0 is one volume of any size. reserve is what each volume holds beside the
// files: the catalog. It returns the cuts of each volume; equal input gives equal output.
func Lay(files map[string]int64, size, reserve int64) ([][]Cut, error) {
	if size == 0 {
		size = 1 << 62
	}
	room := size - overhead - roundUp(reserve)
	if size < MinSize || room < MinSize/2 {
		return nil, fault.New(fault.Usage, "a volume of %d bytes is too small: the catalog alone needs %d", size, reserve).
			WithMend("use volumes of at least %d MiB", (MinSize+2*reserve)>>20+1)
	}
	most := min(int64(PartSize), room-sector-perFile-perLine)
	var volumes [][]Cut
	var left []int64 // room of each volume
	full := 0        // volumes before this one have no room worth looking for
	place := func(c Cut) {
		need := roundUp(c.Size) + perFile + perLine
		n := full
		for n < len(volumes) && left[n] < need {
			n++
		}
		if n == len(volumes) {
			volumes, left = append(volumes, nil), append(left, room)
		}
		volumes[n] = append(volumes[n], c)
		left[n] -= need
		for full < len(volumes) && left[full] < 4*sector {
			full++
		}
	}
	for _, hash := range slices.Sorted(maps.Keys(files)) {
		total := files[hash]
		for at := int64(0); ; at += most {
			n := min(most, total-at)
			place(Cut{hash, at, n})
			if at+n >= total {
				break
			}
		}
	}
	if len(volumes) == 0 {
		volumes = [][]Cut{nil} // a bundle that only takes files away still says so
	}
	if len(volumes) > MaxVolumes {
		return nil, fault.New(fault.Usage, "%d volumes, at most %d are possible", len(volumes), MaxVolumes).WithMend("use larger volumes")
	}
	return volumes, nil
}

func roundUp(n int64) int64 { return (n + sector - 1) / sector * sector }
