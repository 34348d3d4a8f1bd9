package disk

import (
	"fmt"
	"io"
	"iter"
	"sort"
)

// Extent is a run of bytes of a disk that comes from somewhere else: a layer
// file, or a small generated piece. Whatever no extent covers reads as zeros.
type Extent struct {
	Offset int64 // where it stands on the disk, in bytes
	Length int64 // in bytes
	Src    io.ReaderAt
	SrcOff int64 // where it starts in Src
}

// Image is a disk that exists only as a list of extents. Nothing is copied
// until a reader asks, so exporting streams straight out of the layer files.
type Image struct {
	size    int64
	extents []Extent // sorted by Offset, not overlapping
}

// NewImage checks that the extents lie inside size, in any order, and do not
// overlap.
func NewImage(size int64, extents []Extent) (*Image, error) {
	sorted := append([]Extent(nil), extents...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Offset < sorted[j].Offset })
	var end int64
	for _, e := range sorted {
		if e.Length < 0 || e.Offset < end || e.Length > size-e.Offset {
			return nil, fmt.Errorf("extent at %d of %d bytes overlaps another or leaves the disk of %d bytes", e.Offset, e.Length, size)
		}
		end = e.Offset + e.Length
	}
	return &Image{size: size, extents: sorted}, nil
}

// Size is the virtual size of the disk in bytes.
func (im *Image) Size() int64 { return im.size }

// Extents returns the data of the disk in ascending order; the caller must not
// change the slice.
func (im *Image) Extents() []Extent { return im.extents }

// Segments cuts the n bytes at off into pieces in ascending order that cover them
// without a gap: parts of extents, and holes, which have no Src.
func (im *Image) Segments(off, n int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		end := min(off+n, im.size)
		first := sort.Search(len(im.extents), func(i int) bool { return im.extents[i].Offset+im.extents[i].Length > off })
		for _, e := range im.extents[first:] {
			if e.Offset >= end {
				break
			}
			if e.Length == 0 {
				continue
			}
			if e.Offset > off {
				if !yield(Extent{Offset: off, Length: e.Offset - off}) {
					return
				}
				off = e.Offset
			}
			to := min(e.Offset+e.Length, end)
			if !yield(Extent{Offset: off, Length: to - off, Src: e.Src, SrcOff: e.SrcOff + off - e.Offset}) {
				return
			}
			off = to
		}
		if off < end {
			yield(Extent{Offset: off, Length: end - off})
		}
	}
}

// ReadAt implements io.ReaderAt; holes read as zeros.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("negative offset %d", off)
	}
	if off >= im.size {
		return 0, io.EOF
	}
	want := p
	short := false
	if int64(len(want)) > im.size-off {
		want, short = want[:im.size-off], true
	}
	for e := range im.Segments(off, int64(len(want))) {
		at := e.Offset - off
		piece := want[at : at+e.Length]
		if e.Src == nil {
			clear(piece)
			continue
		}
		if n, err := e.Src.ReadAt(piece, e.SrcOff); n < len(piece) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return int(at) + n, fmt.Errorf("reading the disk at %d: %w", e.Offset, err)
		}
	}
	if short {
		return len(want), io.EOF
	}
	return len(want), nil
}
