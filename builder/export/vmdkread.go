package export

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/slipwayhq/slipway/internal/fault"
)

// vmdkReader gives random access to a streamOptimized VMDK.
type vmdkReader struct {
	r      io.ReaderAt
	size   int64 // of the file
	disk   int64 // bytes of the disk
	grain  int64 // bytes
	perGT  int64
	tables []uint32 // the grain directory

	mu     sync.Mutex
	grains map[int64][]byte // a few grains that were read last
	recent []int64          // their numbers, oldest first
	gts    map[int64][]uint32
}

const (
	maxVMDKDisk    = 64 << 40
	maxVMDKGrain   = 1 << 20
	cachedGrains   = 32
	cachedGTs      = 1024
	maxGTEntries   = 4096
	maxDirectories = 1 << 22
)

func badVMDK(format string, args ...any) *fault.Error {
	return fault.New(fault.Integrity, "vmdk: "+format, args...)
}

// OpenVMDK opens a streamOptimized VMDK of size bytes and returns its disk and
// that disk's size. The disk may be read from several goroutines.
func OpenVMDK(r io.ReaderAt, size int64) (io.ReaderAt, int64, error) {
	le := binary.LittleEndian
	h := make([]byte, vmdkSector)
	if _, err := r.ReadAt(h, 0); err != nil {
		return nil, 0, badVMDK("reading the header: %w", err)
	}
	if le.Uint32(h) != vmdkMagic {
		return nil, 0, badVMDK("this is not a sparse VMDK")
	}
	if le.Uint64(h[56:]) == vmdkGDAtEnd {
		// The footer is the last sector but one, before the end-of-stream marker.
		if _, err := r.ReadAt(h, size-2*vmdkSector); size < 4*vmdkSector || err != nil || le.Uint32(h) != vmdkMagic {
			return nil, 0, badVMDK("the footer is missing; the file is cut off or damaged")
		}
	}
	flags := le.Uint32(h[8:])
	if flags&0x30000 != 0x30000 || le.Uint16(h[77:]) != vmdkDeflate {
		return nil, 0, badVMDK("only the streamOptimized kind can be read").
			WithMend("Convert it first: qemu-img convert -O vmdk -o subformat=streamOptimized IN OUT.")
	}
	sectors, grain, perGT := le.Uint64(h[12:]), le.Uint64(h[20:]), le.Uint32(h[44:])
	v := &vmdkReader{r: r, size: size, grains: map[int64][]byte{}, gts: map[int64][]uint32{}}
	if sectors > maxVMDKDisk/vmdkSector || grain == 0 || grain > maxVMDKGrain/vmdkSector || perGT == 0 || perGT > maxGTEntries {
		return nil, 0, badVMDK("the header makes no sense: %d sectors, %d a grain, %d entries a table", sectors, grain, perGT)
	}
	v.disk, v.grain, v.perGT = int64(sectors)*vmdkSector, int64(grain)*vmdkSector, int64(perGT)
	n := ceil(v.disk, v.grain*v.perGT)
	at := le.Uint64(h[56:])
	if n > maxDirectories || at > uint64(size)/vmdkSector || n*4 > size-int64(at)*vmdkSector {
		return nil, 0, badVMDK("the grain directory is not inside the file")
	}
	var err error
	if v.tables, err = v.uint32s(int64(at)*vmdkSector, n); err != nil {
		return nil, 0, err
	}
	return v, v.disk, nil
}

func (v *vmdkReader) uint32s(at, n int64) ([]uint32, error) {
	b := make([]byte, n*4)
	if k, err := v.r.ReadAt(b, at); k < len(b) {
		return nil, badVMDK("reading a table at byte %d: %w", at, unexpected(err))
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return out, nil
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (v *vmdkReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("vmdk: negative offset %d", off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= v.disk {
			return done, io.EOF
		}
		grain, err := v.load(at / v.grain)
		if err != nil {
			return done, err
		}
		piece := p[done:]
		if rest := min(v.grain-at%v.grain, v.disk-at); int64(len(piece)) > rest {
			piece = piece[:rest]
		}
		if grain == nil {
			clear(piece)
		} else {
			copy(piece, grain[at%v.grain:])
		}
		done += len(piece)
	}
	return done, nil
}

// load returns the grain's bytes, or nil for a hole.
func (v *vmdkReader) load(number int64) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if g, ok := v.grains[number]; ok {
		return g, nil
	}
	part := number / v.perGT
	if v.tables[part] == 0 {
		return nil, nil
	}
	table, ok := v.gts[part]
	if !ok {
		var err error
		if table, err = v.uint32s(int64(v.tables[part])*vmdkSector, v.perGT); err != nil {
			return nil, err
		}
		if len(v.gts) >= cachedGTs {
			clear(v.gts)
		}
		v.gts[part] = table
	}
	// 1 means "all zeros" where the header's flags allow it; no grain is there anyway.
	if table[number%v.perGT] <= 1 {
		return nil, nil
	}
	g, err := v.inflate(number, int64(table[number%v.perGT])*vmdkSector)
	if err != nil {
		return nil, err
	}
	if len(v.recent) >= cachedGrains {
		delete(v.grains, v.recent[0])
		v.recent = v.recent[1:]
	}
	v.grains[number] = g
	v.recent = append(v.recent, number)
	return g, nil
}

func (v *vmdkReader) inflate(number, at int64) ([]byte, error) {
	var m [vmdkGrainMarker]byte
	if _, err := v.r.ReadAt(m[:], at); err != nil {
		return nil, badVMDK("reading the grain at byte %d: %w", at, unexpected(err))
	}
	lba, n := binary.LittleEndian.Uint64(m[:]), int64(binary.LittleEndian.Uint32(m[8:]))
	if lba != uint64(number*v.grain/vmdkSector) || n == 0 || n > 2*v.grain {
		return nil, badVMDK("the grain at byte %d has a wrong marker (sector %d, %d bytes)", at, lba, n)
	}
	b := make([]byte, n)
	if k, err := v.r.ReadAt(b, at+vmdkGrainMarker); int64(k) < n {
		return nil, badVMDK("reading the grain at byte %d: %w", at, unexpected(err))
	}
	z, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, badVMDK("the grain at byte %d: %w", at, err)
	}
	defer z.Close()
	out := make([]byte, v.grain)
	got, err := io.ReadFull(z, out)
	// Some writers cut the last grain where the disk ends.
	whole := min(v.grain, v.disk-number*v.grain)
	if int64(got) < whole {
		return nil, badVMDK("the grain at byte %d holds %d bytes instead of %d: %w", at, got, whole, unexpected(err))
	}
	return out, nil
}
