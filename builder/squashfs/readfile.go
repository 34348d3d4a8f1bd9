package squashfs

import (
	"io"
	"sync"
)

// content says where a file's bytes are.
type content struct {
	s        *Reader
	start    uint64
	size     uint64
	fragment uint32
	offset   uint32 // in the fragment block
	blocks   []uint32
}

// fileReader reads a file from its beginning to its end.
type fileReader struct {
	*content
	at    int64 // where the next block is
	block int   // its number
	done  uint64
	rest  []byte
}

func (f *fileReader) Close() error { return nil }

func (f *fileReader) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.done == f.size {
			return 0, io.EOF
		}
		if err := f.load(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// load fetches the next block, or the tail.
func (f *fileReader) load() error {
	want := int(min(f.size-f.done, uint64(f.s.sb.BlockSize)))
	if f.block == len(f.blocks) {
		b, err := f.s.fragmentBlock(f.fragment)
		if err != nil {
			return err
		}
		if uint64(f.offset)+uint64(want) > uint64(len(b)) {
			return bad("a file reaches beyond its fragment")
		}
		f.rest = b[f.offset:][:want]
		f.done += uint64(want)
		return nil
	}
	word := f.blocks[f.block]
	f.block++
	f.done += uint64(want)
	if word == 0 {
		f.rest = make([]byte, want)
		return nil
	}
	b, err := f.s.dataBlock(f.at, word)
	if err != nil {
		return err
	}
	if len(b) != want {
		return bad("the block at byte %d has %d bytes instead of %d", f.at, len(b), want)
	}
	f.at += int64(word &^ rawBlock)
	f.rest = b
	return nil
}

// dataBlock reads and unpacks the block at byte at, with its size word.
func (s *Reader) dataBlock(at int64, word uint32) ([]byte, error) {
	n := word &^ rawBlock
	if n > s.sb.BlockSize {
		return nil, bad("the block at byte %d has %d bytes, more than the block size", at, n)
	}
	src := make([]byte, n)
	if k, err := s.r.ReadAt(src, at); k < len(src) {
		return nil, bad("the block at byte %d: %w", at, noEOF(err))
	}
	if word&rawBlock != 0 {
		return src, nil
	}
	b, err := s.unpack(src, int(s.sb.BlockSize))
	if err != nil {
		return nil, bad("the block at byte %d: %w", at, err)
	}
	return b, nil
}

// fragmentCache keeps the fragment blocks that were used last: neighbouring
// small files share them.
type fragmentCache struct {
	mu     sync.Mutex
	blocks map[uint32][]byte
	order  []uint32 // oldest first
}

func (s *Reader) fragmentBlock(i uint32) ([]byte, error) {
	c := &s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.blocks[i]; ok {
		return b, nil
	}
	if uint64(i)*fragmentEntry >= uint64(len(s.fragments)) {
		return nil, bad("fragment %d does not exist", i)
	}
	e := s.fragments[int(i)*fragmentEntry:]
	start := le.Uint64(e)
	if start > s.sb.BytesUsed {
		return nil, bad("fragment %d leaves the image", i)
	}
	b, err := s.dataBlock(int64(start), le.Uint32(e[8:]))
	if err != nil {
		return nil, err
	}
	if c.blocks == nil {
		c.blocks = map[uint32][]byte{}
	}
	if len(c.order) == cachedFragment {
		delete(c.blocks, c.order[0])
		c.order = c.order[1:]
	}
	c.blocks[i] = b
	c.order = append(c.order, i)
	return b, nil
}
