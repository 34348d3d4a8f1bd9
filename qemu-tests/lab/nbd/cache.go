package nbd

import (
	"errors"
	"io"
	"maps"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	sectorSize = 512 // what a disk writes as a whole or not at all
	pageSize   = 4 << 10
	blockSize  = 64 << 10

	sectors = blockSize / sectorSize // of a block
	pages   = blockSize / pageSize

	blockCost = 512 // about what a block takes beside its pages
)

// cache is what was written to a file and is not in it yet. All ranges are whole
// sectors.
type cache struct {
	file   *os.File
	blocks map[int64]*block // by the number of the block in the file
	held   int64            // bytes of memory that the blocks take, about
	buffer []byte           // for a block on its way into the file
}

// block is the unwritten part of 64 KiB of the file.
type block struct {
	dirty [sectors / 64]uint64   // a bit for each sector that is held here
	pages [pages]*[pageSize]byte // those that are nil are zeros
}

func newCache(file *os.File) *cache {
	return &cache{file: file, blocks: map[int64]*block{}, buffer: make([]byte, blockSize)}
}

// run is a stretch of a request inside of one block.
type run struct {
	number int64 // of the block
	from   int   // within the block, bytes
	to     int
	at     int64 // within the request
}

// runs cuts a range at the boundaries of blocks.
func runs(off, length int64) func(yield func(run) bool) {
	return func(yield func(run) bool) {
		for at := int64(0); at < length; {
			from := (off + at) % blockSize
			n := min(blockSize-from, length-at)
			if !yield(run{(off + at) / blockSize, int(from), int(from + n), at}) {
				return
			}
			at += n
		}
	}
}

// ReadAt reads what was written last, from here or from the file.
func (c *cache) ReadAt(p []byte, off int64) (int, error) {
	if n, err := c.file.ReadAt(p, off); err != nil && !(errors.Is(err, io.EOF) && n == len(p)) {
		return n, err
	}
	for r := range runs(off, int64(len(p))) {
		if b := c.blocks[r.number]; b != nil {
			b.read(p[r.at:], r.from, r.to)
		}
	}
	return len(p), nil
}

// WriteAt keeps data here.
func (c *cache) WriteAt(p []byte, off int64) (int, error) {
	for r := range runs(off, int64(len(p))) {
		b := c.block(r.number)
		c.held += b.write(p[r.at:r.at+int64(r.to-r.from)], r.from)
	}
	return len(p), nil
}

// zero keeps zeros here, which take next to no room.
func (c *cache) zero(off, length int64) {
	for r := range runs(off, length) {
		c.held -= c.block(r.number).zero(r.from, r.to)
	}
}

func (c *cache) block(number int64) *block {
	b := c.blocks[number]
	if b == nil {
		b = &block{}
		c.blocks[number] = b
		c.held += blockCost
	}
	return b
}

// through writes past the cache into the file, and forgets what was held of that
// range.
func (c *cache) through(p []byte, off int64) error {
	if _, err := c.file.WriteAt(p, off); err != nil {
		return err
	}
	c.forget(off, int64(len(p)))
	return nil
}

// zeroThrough is through for zeros.
func (c *cache) zeroThrough(off, length int64) error {
	if err := c.punch(off, length); err != nil {
		return err
	}
	c.forget(off, length)
	return nil
}

func (c *cache) forget(off, length int64) {
	for r := range runs(off, length) {
		b := c.blocks[r.number]
		if b == nil {
			continue
		}
		for s := r.from / sectorSize; s < r.to/sectorSize; s++ {
			b.clear(s)
		}
		if b.clean() {
			c.drop(r.number)
		}
	}
}

func (c *cache) drop(number int64) {
	b := c.blocks[number]
	c.held -= blockCost
	for _, p := range b.pages {
		if p != nil {
			c.held -= pageSize
		}
	}
	delete(c.blocks, number)
}

// write brings all that is held into the file, in the order of the file. What an
// error keeps out stays held.
//
// Nothing here asks the host to bring the file to its own disk: the power that is
// cut is that of the virtual machine, and the host's page cache outlives that. An
// fsync would cost more than the guest's whole flush and save nothing.
func (c *cache) write() error {
	for _, number := range slices.Sorted(maps.Keys(c.blocks)) {
		if err := c.writeBlock(number, c.blocks[number]); err != nil {
			return err
		}
		c.drop(number)
	}
	return nil
}

func (c *cache) writeBlock(number int64, b *block) error {
	start := number * blockSize
	for from := 0; from < sectors; {
		if !b.has(from) {
			from++
			continue
		}
		to := from + 1
		for to < sectors && b.has(to) {
			to++
		}
		var err error
		if from == 0 && to == sectors && b.pages == [pages]*[pageSize]byte{} {
			err = c.punch(start, blockSize)
		} else {
			part := c.buffer[:(to-from)*sectorSize]
			b.read(part, from*sectorSize, to*sectorSize)
			_, err = c.file.WriteAt(part, start+int64(from*sectorSize))
		}
		if err != nil {
			return err
		}
		from = to
	}
	return nil
}

// punch makes a range of the file read as zeros, without room where the file
// system can.
func (c *cache) punch(off, length int64) error {
	if length == 0 {
		return nil // which the kernel would refuse
	}
	err := punchHole(c.file, off, length)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	clear(c.buffer)
	for r := range runs(off, length) {
		if _, err := c.file.WriteAt(c.buffer[:r.to-r.from], off+r.at); err != nil {
			return err
		}
	}
	return nil
}

// lose is the power cut. Without a source of chance all that is held is dropped;
// with one each sector is dropped or written, as chance has it. It says how many
// bytes were dropped and how many survived.
func (c *cache) lose(chance *rand.Rand) (dropped, survived int64, err error) {
	for _, number := range slices.Sorted(maps.Keys(c.blocks)) {
		b := c.blocks[number]
		for s := range sectors {
			switch {
			case !b.has(s):
			case chance != nil && chance.Uint64()&1 == 1:
				survived += sectorSize
			default:
				b.clear(s)
				dropped += sectorSize
			}
		}
	}
	err = c.write()
	c.blocks, c.held = map[int64]*block{}, 0
	return dropped, survived, err
}

// bytes is how much is held.
func (c *cache) bytes() int64 {
	var n int
	for _, b := range c.blocks {
		for _, word := range b.dirty {
			n += bits.OnesCount64(word)
		}
	}
	return int64(n) * sectorSize
}

func (b *block) has(sector int) bool { return b.dirty[sector/64]>>(sector%64)&1 == 1 }
func (b *block) set(sector int)      { b.dirty[sector/64] |= 1 << (sector % 64) }
func (b *block) clear(sector int)    { b.dirty[sector/64] &^= 1 << (sector % 64) }
func (b *block) clean() bool         { return b.dirty == [sectors / 64]uint64{} }

// read puts the sectors that are held into p, which begins at from.
func (b *block) read(p []byte, from, to int) {
	for at := from; at < to; at += sectorSize {
		if !b.has(at / sectorSize) {
			continue
		}
		out := p[at-from:][:sectorSize]
		if page := b.pages[at/pageSize]; page != nil {
			copy(out, page[at%pageSize:])
		} else {
			clear(out)
		}
	}
}

// write takes sectors in and says how much memory that took.
func (b *block) write(p []byte, from int) (took int64) {
	for at := from; len(p) > 0; at += sectorSize {
		page := b.pages[at/pageSize]
		if page == nil {
			page = new([pageSize]byte)
			b.pages[at/pageSize] = page
			took += pageSize
		}
		copy(page[at%pageSize:][:sectorSize], p)
		b.set(at / sectorSize)
		p = p[sectorSize:]
	}
	return took
}

// zero takes zeros in and says how much memory that freed.
func (b *block) zero(from, to int) (freed int64) {
	for at := from; at < to; at += sectorSize {
		b.set(at / sectorSize)
		page := b.pages[at/pageSize]
		switch {
		case page == nil:
		case at%pageSize == 0 && at+pageSize <= to:
			b.pages[at/pageSize] = nil
			freed += pageSize
		default:
			clear(page[at%pageSize:][:sectorSize])
		}
	}
	return freed
}
