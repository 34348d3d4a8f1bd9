package export

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"io"
	"runtime"
	"slices"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/internal/fault"
)

// From VMware's "Virtual Disk Format 5.0" technical note, sections "Hosted
// Sparse Extent Header" and "Stream-Optimized Compressed Sparse Extents".
const (
	vmdkMagic       = 0x564d444b
	vmdkVersion     = 3
	vmdkFlags       = 0x1 | 0x10000 | 0x20000 // newline test, compressed grains, markers
	vmdkDeflate     = 1
	vmdkGDAtEnd     = ^uint64(0) // the grain directory is named by the footer
	vmdkSector      = 512
	vmdkGrain       = 64 << 10
	vmdkGTEntries   = 512
	vmdkDescriptor  = 20  // sectors
	vmdkOverhead    = 128 // sectors before the first grain, as VMware's own writer leaves
	vmdkGrainMarker = 12  // bytes of a grain's marker: sector and length

	markerGT     = 1
	markerGD     = 2
	markerFooter = 3
)

// VMDKOptions say how a VMDK is written.
type VMDKOptions struct {
	Name    string   // of the file, which the descriptor inside it names
	Seed    [32]byte // decides the content ids and the disk's serial
	Workers int      // goroutines that compress; 0 means one per CPU
}

// VMDK writes the disk as a streamOptimized VMDK, the form that an OVA carries:
// compressed grains of 64 KiB, each group of 512 followed by its grain table,
// then the grain directory and the footer.
//
// Nearly all of the disk is compressed already. Grains that look so are put into
// deflate's stored blocks without trying; others are compressed at the fastest level.
func VMDK(ctx context.Context, w io.Writer, im *disk.Image, o VMDKOptions) error {
	if im.Size()%vmdkSector != 0 || im.Size() > 8<<40 {
		return fault.New(fault.Internal, "vmdk: a disk of %d bytes is not whole sectors, or over 8 TiB", im.Size())
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	runs, err := dataRuns(im, vmdkGrain)
	if err != nil {
		return err
	}
	v := &vmdkWriter{w: w, sectors: im.Size() / vmdkSector}
	v.directory = make([]uint32, ceil(v.sectors, vmdkGrain/vmdkSector*vmdkGTEntries))
	head := make([]byte, vmdkOverhead*vmdkSector)
	copy(head, v.header(vmdkGDAtEnd))
	descriptor := vmdkDescriptorText(o, v.sectors)
	if len(descriptor) > vmdkDescriptor*vmdkSector {
		return fault.New(fault.Internal, "vmdk: the name %q is too long", o.Name)
	}
	copy(head[vmdkSector:], descriptor)
	if err := v.write(head); err != nil {
		return err
	}
	if err := v.grains(ctx, im, runs, o.Workers); err != nil {
		return err
	}
	return v.finish()
}

// grainBatch is up to a megabyte of neighbouring grains on its way through the
// pipeline. Their fixed number bounds memory.
type grainBatch struct {
	first   int64
	count   int
	out     []byte
	offsets []int  // of each grain in out
	spare   []byte // one grain, for those that are compressed
	err     error
	done    chan struct{}
}

const grainsPerBatch = 16 // divides vmdkGTEntries, so a batch has one grain table

// grains reads and compresses batches in parallel and writes them in order.
func (v *vmdkWriter) grains(ctx context.Context, im *disk.Image, runs []unitRun, workers int) error {
	batches := 2*workers + 2
	free, work, order := make(chan *grainBatch, batches), make(chan *grainBatch, batches), make(chan *grainBatch, batches)
	for range batches {
		free <- &grainBatch{}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		for _, r := range runs {
			for at, end := r.first, r.first+r.count; at < end; {
				stop := min(end, at/grainsPerBatch*grainsPerBatch+grainsPerBatch)
				select {
				case b := <-free:
					b.first, b.count, b.done = at, int(stop-at), make(chan struct{})
					work <- b // never blocks: there are as many places as batches
					order <- b
				case <-ctx.Done():
					return ctx.Err()
				}
				at = stop
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			z, err := zlib.NewWriterLevel(io.Discard, 1)
			if err != nil {
				return err
			}
			for b := range work {
				b.err = b.compress(im, z)
				close(b.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		for b := range order {
			select {
			case <-b.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if b.err != nil {
				return b.err
			}
			if err := v.add(b); err != nil {
				return err
			}
			free <- b
		}
		return nil
	})
	return g.Wait()
}

// Deflate's stored blocks hold at most 65,535 bytes (RFC 1951, section 3.2.4), so
// a stored grain is two of them in a zlib stream (RFC 1950): the stream's header,
// a block, a block of one byte, and the Adler-32.
const (
	zlibHeader   = 2
	storedHeader = 5
	storedLimit  = 1<<16 - 1
	storedGrain  = zlibHeader + storedHeader + storedLimit + storedHeader + (vmdkGrain - storedLimit) + 4
	// paddedGrain is the most that a grain takes in the file. Deflate falls back to
	// stored blocks by itself, so compressing cannot make more than a few bytes more.
	paddedGrain = (vmdkGrainMarker+storedGrain+vmdkSector)/vmdkSector*vmdkSector + vmdkSector
)

// compress reads the batch's grains and makes out of them what goes to the file:
// for each a marker, the deflated bytes, and padding to whole sectors.
func (b *grainBatch) compress(im *disk.Image, z *zlib.Writer) error {
	if b.out == nil {
		b.out, b.spare = make([]byte, 0, grainsPerBatch*paddedGrain), make([]byte, vmdkGrain)
	}
	b.out, b.offsets = b.out[:0], b.offsets[:0]
	for i := range int64(b.count) {
		at := len(b.out)
		b.offsets = append(b.offsets, at)
		// The grain is read to where it will stand if it is stored, which is the rule.
		body := at + vmdkGrainMarker
		content := body + zlibHeader + storedHeader
		b.out = slices.Grow(b.out, paddedGrain)[:content+vmdkGrain]
		grain := b.out[content:]
		n, err := im.ReadAt(grain, (b.first+i)*vmdkGrain)
		if err != nil && err != io.EOF {
			return err
		}
		clear(grain[n:]) // beyond the end of a disk that is not whole grains
		if incompressible(grain) {
			b.out = store(b.out[:body], grain)
		} else if err := b.deflate(body, grain, z); err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(b.out[at:], uint64(b.first+i)*vmdkGrain/vmdkSector)
		binary.LittleEndian.PutUint32(b.out[at+8:], uint32(len(b.out)-body))
		if rest := len(b.out) % vmdkSector; rest != 0 {
			b.out = append(b.out, make([]byte, vmdkSector-rest)...)
		}
	}
	return nil
}

// deflate replaces the grain, which stands in b.out behind body, by its compressed form.
func (b *grainBatch) deflate(body int, grain []byte, z *zlib.Writer) error {
	copy(b.spare, grain)
	b.out = b.out[:body]
	z.Reset((*appender)(&b.out))
	if _, err := z.Write(b.spare); err != nil {
		return err
	}
	return z.Close()
}

// store appends grain to out as stored blocks. The grain stands already where its
// first block goes, so that only its last byte moves.
func store(out, grain []byte) []byte {
	sum, last := adler32.Checksum(grain), grain[vmdkGrain-1]
	out = append(out, 0x78, 0x01, 0, 0xff, 0xff, 0, 0) // a block of 65,535 bytes, not the last
	out = append(out, grain[:storedLimit]...)          // onto itself
	out = append(out, 1, 1, 0, 0xfe, 0xff, last)       // the last one, of one byte
	return binary.BigEndian.AppendUint32(out, sum)
}

// incompressible guesses from the first and the last 4 KiB. The limit lies above
// what pieces of zstd streams give (9 of 10 are under 0.2) and below what programs
// and text do. A wrong guess costs some room or some time, nothing else.
func incompressible(grain []byte) bool {
	const sample, limit = 4 << 10, 0.25
	return compress.Estimate(grain[:sample]) < limit && compress.Estimate(grain[len(grain)-sample:]) < limit
}

// appender lets an encoder write into a slice that is kept between uses.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}

// vmdkWriter knows where it is in the file and collects the grain tables.
type vmdkWriter struct {
	w         io.Writer
	at        int64 // bytes written
	sectors   int64 // of the disk
	directory []uint32
	table     [vmdkGTEntries]uint32
	part      int64 // the number of the grain table being filled
	filled    bool
}

func (v *vmdkWriter) write(p []byte) error {
	n, err := v.w.Write(p)
	v.at += int64(n)
	return err
}

func (v *vmdkWriter) add(b *grainBatch) error {
	if part := b.first / vmdkGTEntries; part != v.part {
		if err := v.flushTable(); err != nil {
			return err
		}
		v.part = part
	}
	// Sector numbers have 32 bits, so a file can have 2 TiB.
	if (v.at+int64(len(b.out)))/vmdkSector >= 1<<32 {
		return fault.New(fault.Input, "vmdk: the image would be larger than 2 TiB")
	}
	for i, off := range b.offsets {
		v.table[(b.first+int64(i))%vmdkGTEntries] = uint32((v.at + int64(off)) / vmdkSector)
	}
	v.filled = true
	return v.write(b.out)
}

// flushTable writes the grain table behind its grains.
func (v *vmdkWriter) flushTable() error {
	if !v.filled {
		return nil
	}
	b := marker(vmdkGTEntries*4/vmdkSector, markerGT)
	v.directory[v.part] = uint32((v.at + int64(len(b))) / vmdkSector)
	for _, e := range v.table {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	v.table, v.filled = [vmdkGTEntries]uint32{}, false
	return v.write(b)
}

func (v *vmdkWriter) finish() error {
	if err := v.flushTable(); err != nil {
		return err
	}
	sectors := ceil(int64(len(v.directory))*4, vmdkSector)
	b := marker(sectors, markerGD)
	at := uint64(v.at+int64(len(b))) / vmdkSector
	for _, e := range v.directory {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	b = append(b, make([]byte, (1+sectors)*vmdkSector-int64(len(b)))...)
	b = append(b, marker(1, markerFooter)...)
	b = append(b, v.header(at)...)
	return v.write(append(b, make([]byte, vmdkSector)...)) // a marker of zeros ends the stream
}

// marker is the sector that announces sectors of metadata.
func marker(sectors int64, kind uint32) []byte {
	b := make([]byte, vmdkSector)
	binary.LittleEndian.PutUint64(b, uint64(sectors))
	binary.LittleEndian.PutUint32(b[12:], kind)
	return b
}

// header is the sparse extent header, at the start with the directory "at end"
// and in the footer with its place.
func (v *vmdkWriter) header(directory uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, vmdkSector)
	le.PutUint32(b[0:], vmdkMagic)
	le.PutUint32(b[4:], vmdkVersion)
	le.PutUint32(b[8:], vmdkFlags)
	le.PutUint64(b[12:], uint64(v.sectors))
	le.PutUint64(b[20:], vmdkGrain/vmdkSector)
	le.PutUint64(b[28:], 1) // the descriptor's sector
	le.PutUint64(b[36:], vmdkDescriptor)
	le.PutUint32(b[44:], vmdkGTEntries)
	le.PutUint64(b[56:], directory)
	le.PutUint64(b[64:], vmdkOverhead)
	copy(b[73:], "\n \r\n") // broken by a transfer in text mode
	le.PutUint16(b[77:], vmdkDeflate)
	return b
}

// vmdkDescriptorText is the text part of the file. The geometry is what VMware
// gives any disk over 4 GiB. toolsVersion 2147483647 with install type 4 says
// that the guest's package manager cares for its tools.
func vmdkDescriptorText(o VMDKOptions, sectors int64) string {
	const heads, perTrack = 255, 63
	sum := sha256.Sum256(append(o.Seed[:], "slipway vmdk"...))
	id := func(i int) uint32 {
		// The two highest numbers mean "none" and "to be made".
		return min(binary.BigEndian.Uint32(sum[4*i:]), 0xfffffffd)
	}
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.longContentID = "%08x%08x%08x%08x"
ddb.uuid = "%s"
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.adapterType = "lsilogic"
ddb.toolsInstallType = "4"
ddb.toolsVersion = "2147483647"
`, id(0), sectors, o.Name, id(1), id(2), id(3), id(0), diskUUID(o.Seed),
		min(ceil(sectors, heads*perTrack), 65535), heads, perTrack)
}

// diskUUID is what the guest sees as the disk's serial number where
// disk.EnableUUID is set: 6000C29 is VMware's prefix, the rest is derived.
func diskUUID(seed [32]byte) string {
	sum := sha256.Sum256(append(seed[:], "slipway disk serial"...))
	u := append([]byte{0x60, 0x00, 0xc2, 0x90 | sum[0]&0x0f}, sum[1:13]...)
	return fmt.Sprintf("% x-% x", u[:8], u[8:])
}
