package export

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/slipwayhq/slipway/builder/disk"
)

// copyBuffer is how much is moved at a time where the kernel cannot do it alone.
const copyBuffer = 1 << 20

// sink writes parts of an image in sequence.
type sink struct {
	ctx  context.Context
	w    io.Writer
	file *os.File // w, if it is a file
	buf  []byte
}

func newSink(ctx context.Context, w io.Writer) *sink {
	s := &sink{ctx: ctx, w: w, buf: make([]byte, copyBuffer)}
	s.file, _ = w.(*os.File)
	return s
}

// write writes the n bytes of im at off; holes become zeros.
func (s *sink) write(im *disk.Image, off, n int64) error {
	for e := range im.Segments(off, n) {
		if err := s.segment(e); err != nil {
			return fmt.Errorf("disk at byte %d: %w", e.Offset, err)
		}
	}
	if past := off + n - im.Size(); past > 0 {
		return s.segment(disk.Extent{Length: past})
	}
	return nil
}

func (s *sink) segment(e disk.Extent) error {
	// A file's bytes go from file to file inside the kernel, which on file
	// systems with clones (XFS, Btrfs, bcachefs) moves no data at all.
	if from := sourceFile(&e); from != nil && s.file != nil {
		n, err := copyFileRange(s.ctx, s.file, from, e.SrcOff, e.Length)
		if err != nil {
			return err
		}
		e.SrcOff += n
		e.Length -= n
	}
	if e.Src == nil {
		clear(s.buf[:min(e.Length, copyBuffer)])
	}
	for e.Length > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		piece := s.buf[:min(e.Length, copyBuffer)]
		if e.Src != nil {
			if n, err := e.Src.ReadAt(piece, e.SrcOff); n < len(piece) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		if _, err := s.w.Write(piece); err != nil {
			return err
		}
		e.SrcOff += int64(len(piece))
		e.Length -= int64(len(piece))
	}
	return nil
}

// sourceFile returns the file behind an extent, also behind section readers, and
// moves the extent's position to that of the file.
func sourceFile(e *disk.Extent) *os.File {
	for {
		switch src := e.Src.(type) {
		case *os.File:
			return src
		case *io.SectionReader:
			outer, off, n := src.Outer()
			if e.SrcOff+e.Length > n {
				return nil // reads past its end; let ReadAt say so
			}
			e.Src, e.SrcOff = outer, e.SrcOff+off
		default:
			return nil
		}
	}
}

// unit is a granule of an image: a cluster or a grain, by number.
type unit = int64

// unitRun is a number of consecutive units that hold data.
type unitRun struct {
	first unit
	count int64
}

// generatedLimit is the length up to which an extent is looked into for zeros.
// Longer ones are kernels and layers: compressed files, which have none.
const generatedLimit = 4 << 20

// dataRuns lists which units of the given size hold data. Units that no extent
// touches do not, nor do units of generated pieces that turn out to be zero.
func dataRuns(im *disk.Image, size int64) ([]unitRun, error) {
	var runs []unitRun
	next := unit(0) // the first that is not decided yet
	add := func(u unit, n int64) {
		if n <= 0 {
			return
		}
		if k := len(runs); k > 0 && runs[k-1].first+runs[k-1].count == u {
			runs[k-1].count += n
		} else {
			runs = append(runs, unitRun{u, n})
		}
		next = u + n
	}
	buf := make([]byte, size)
	for _, e := range im.Extents() {
		if e.Length == 0 {
			continue
		}
		from, to := max(e.Offset/size, next), (e.Offset+e.Length-1)/size+1
		if e.Length > generatedLimit {
			add(from, to-from)
			continue
		}
		for u := from; u < to; u++ {
			n, err := im.ReadAt(buf, u*size)
			if err != nil && err != io.EOF {
				return nil, err
			}
			if !allZero(buf[:n]) {
				add(u, 1)
			}
		}
	}
	return runs, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
