package disk

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// Whatever the extents, reading through the image equals reading a plain copy.
func TestAnyExtentsReadAsOneDisk(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		size := int64(1 + rng.IntN(5000))
		plain := make([]byte, size)
		var extents []Extent
		for at := int64(0); at < size; {
			n := int64(rng.IntN(300))
			if rng.IntN(2) == 0 && at+n <= size {
				src := make([]byte, n+int64(rng.IntN(50)))
				rand.NewChaCha8([32]byte{byte(seed)}).Read(src)
				off := int64(len(src)) - n
				extents = append(extents, Extent{Offset: at, Length: n, Src: bytes.NewReader(src), SrcOff: off})
				copy(plain[at:], src[off:])
			}
			at += n + 1
		}
		rng.Shuffle(len(extents), func(i, j int) { extents[i], extents[j] = extents[j], extents[i] })
		im, err := NewImage(size, extents)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			off, n := rng.Int64N(size+10), rng.IntN(1000)
			got := bytes.Repeat([]byte{0xaa}, n)
			k, err := im.ReadAt(got, off)
			want := plain[min(off, size):min(off+int64(n), size)]
			if !bytes.Equal(got[:k], want) || (err == io.EOF) != (off+int64(n) > size || off >= size) || err != nil && err != io.EOF {
				t.Fatalf("seed %d: ReadAt(%d at %d of %d) gives %d bytes, %v", seed, n, off, size, k, err)
			}
		}
		var end int64
		for e := range im.Segments(0, size) {
			if e.Offset != end || e.Length <= 0 {
				t.Fatalf("seed %d: a segment at %d, want %d", seed, e.Offset, end)
			}
			end += e.Length
		}
		if end != size {
			t.Fatalf("seed %d: segments end at %d of %d", seed, end, size)
		}
	}
}

func TestNewImageRefusesOverlaps(t *testing.T) {
	src := bytes.NewReader(make([]byte, 100))
	for _, extents := range [][]Extent{
		{{Offset: 0, Length: 10, Src: src}, {Offset: 9, Length: 10, Src: src}},
		{{Offset: 95, Length: 10, Src: src}},
		{{Offset: -1, Length: 10, Src: src}},
		{{Offset: 0, Length: -1, Src: src}},
		{{Offset: 1 << 62, Length: 1 << 62, Src: src}},
	} {
		if _, err := NewImage(100, extents); err == nil {
			t.Errorf("%v is accepted", extents)
		}
	}
}

func TestAShortSourceIsAnError(t *testing.T) {
	im, err := NewImage(100, []Extent{{Offset: 0, Length: 50, Src: bytes.NewReader(make([]byte, 20))}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := im.ReadAt(make([]byte, 100), 0); err == nil || err == io.EOF || n != 20 {
		t.Errorf("reading past the end of a layer file gives %d bytes, %v", n, err)
	}
}
