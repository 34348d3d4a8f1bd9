package squashfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// job is one block on its way through the pipeline. The fixed number of jobs is
// what bounds memory.
type job struct {
	raw  []byte // content, at most one block
	out  []byte // what goes to disk: compressed, or raw again
	word uint32 // its size word
	done chan struct{}

	file     *inode // the file whose block it is, or nil for a fragment block
	block    int    // index in file.data.blocks
	fragment int    // index of the fragment block
}

// packer reads files in order and cuts them into jobs. Readers, compressors and
// the writer run side by side; order is the sequence in which blocks reach the
// disk, so the bytes do not depend on who compresses when.
type packer struct {
	ctx       context.Context
	blockSize int
	free      chan *job // jobs that nobody uses
	work      chan *job // to be compressed, any order
	order     chan *job // the same jobs, to be written in this order

	pending   *job // the fragment block being filled
	fragments int  // fragment blocks begun

	sameSize map[int64]int // how many files have a size; only those may be duplicates
	seen     map[contentKey]*inode
}

type contentKey struct {
	size int64
	sum  [sha256.Size]byte
}

// packData writes the content of all regular files and returns the fragment table.
func packData(ctx context.Context, out *counter, inodes []*inode, o Options) ([]byte, error) {
	jobs := 3*o.Workers + 3
	g, ctx := errgroup.WithContext(ctx)
	p := &packer{
		ctx: ctx, blockSize: o.BlockSize,
		free: make(chan *job, jobs), work: make(chan *job, jobs), order: make(chan *job, jobs),
		sameSize: map[int64]int{}, seen: map[contentKey]*inode{},
	}
	for range jobs {
		p.free <- &job{}
	}
	for _, n := range inodes {
		if n.entry.Kind == tree.Regular {
			p.sameSize[n.entry.Size]++
		}
	}
	g.Go(func() error {
		defer close(p.work)
		defer close(p.order)
		for _, n := range inodes {
			if n.entry.Kind != tree.Regular || n.entry.Size == 0 {
				continue
			}
			if err := p.add(n); err != nil {
				return fmt.Errorf("%s: %w", n.entry.Path, err)
			}
		}
		return p.flushFragment()
	})
	for range o.Workers {
		g.Go(func() error { return compressJobs(p.work, o) })
	}
	var table []byte
	g.Go(func() error {
		var err error
		table, err = p.writeJobs(out)
		return err
	})
	err := g.Wait()
	return table, err
}

func compressJobs(work <-chan *job, o Options) error {
	enc, err := o.newEncoder()
	if err != nil {
		return err
	}
	defer enc.Close()
	for j := range work {
		j.out = enc.EncodeAll(j.raw, j.out[:0])
		j.word = uint32(len(j.out))
		if len(j.out) >= len(j.raw) {
			j.out = append(j.out[:0], j.raw...)
			j.word = uint32(len(j.raw)) | rawBlock
		}
		close(j.done)
	}
	return nil
}

// writeJobs writes blocks in order and notes where they came to stand.
func (p *packer) writeJobs(out *counter) ([]byte, error) {
	var table []byte
	for j := range p.order {
		select {
		case <-j.done:
		case <-p.ctx.Done():
			return nil, p.ctx.Err()
		}
		if j.file == nil {
			table = binary.LittleEndian.AppendUint64(table, uint64(out.n))
			table = binary.LittleEndian.AppendUint32(table, j.word)
			table = binary.LittleEndian.AppendUint32(table, 0)
		} else {
			if d := &j.file.data; d.start == 0 {
				d.start = out.n
			}
			j.file.data.blocks[j.block] = j.word
		}
		if _, err := out.Write(j.out); err != nil {
			return nil, err
		}
		p.free <- j
	}
	return table, nil
}

func (p *packer) take() (*job, error) {
	select {
	case j := <-p.free:
		if j.raw == nil {
			j.raw = make([]byte, p.blockSize)
		}
		j.raw, j.file, j.done = j.raw[:0], nil, make(chan struct{})
		return j, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *packer) submit(j *job) {
	p.work <- j // never blocks: there are as many places as jobs
	p.order <- j
}

// add packs one file: a small one into the current fragment block, a larger one
// as blocks of its own.
func (p *packer) add(n *inode) error {
	e := n.entry
	if e.Size < 0 || e.Open == nil {
		return fault.New(fault.Internal, "a file of %d bytes without content", e.Size)
	}
	if e.Size < int64(p.blockSize) {
		return p.addSmall(n)
	}
	// A file of the same size may have come before: hash this one first, since
	// what was written cannot be taken back.
	shared := p.sameSize[e.Size] > 1
	if shared {
		h := sha256.New()
		if err := readAll(e, func(r io.Reader) error { _, err := io.Copy(h, r); return err }); err != nil {
			return err
		}
		if p.duplicate(n, contentKey{e.Size, [sha256.Size]byte(h.Sum(nil))}) {
			return nil
		}
	}
	return readAll(e, func(r io.Reader) error { return p.addBlocks(n, r) })
}

func (p *packer) addBlocks(n *inode, r io.Reader) error {
	size := n.entry.Size
	n.data.blocks = make([]uint32, (size+int64(p.blockSize)-1)/int64(p.blockSize))
	for i := range n.data.blocks {
		j, err := p.take()
		if err != nil {
			return err
		}
		j.raw = j.raw[:min(int64(p.blockSize), size-int64(i)*int64(p.blockSize))]
		if _, err := io.ReadFull(r, j.raw); err != nil {
			return shortRead(err, size)
		}
		if allZero(j.raw) {
			n.data.sparse += int64(len(j.raw))
			p.free <- j
			continue
		}
		j.file, j.block = n, i
		p.submit(j)
	}
	return nil
}

// addSmall reads a small file straight into the fragment block that is being filled.
func (p *packer) addSmall(n *inode) error {
	size := int(n.entry.Size)
	if p.pending != nil && len(p.pending.raw)+size > p.blockSize {
		if err := p.flushFragment(); err != nil {
			return err
		}
	}
	if p.pending == nil {
		j, err := p.take()
		if err != nil {
			return err
		}
		j.fragment = p.fragments
		p.fragments++
		p.pending = j
	}
	at := len(p.pending.raw)
	content := p.pending.raw[at : at+size]
	err := readAll(n.entry, func(r io.Reader) error {
		if _, err := io.ReadFull(r, content); err != nil {
			return shortRead(err, n.entry.Size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.sameSize[n.entry.Size] > 1 && p.duplicate(n, contentKey{n.entry.Size, sha256.Sum256(content)}) {
		return nil
	}
	p.pending.raw = p.pending.raw[:at+size]
	n.data.fragment, n.data.fragOffset = uint32(p.pending.fragment), uint32(at)
	return nil
}

// duplicate reports whether the content was packed before, and if so lets n's
// data be that of the first. The first's positions may not be known yet, so it
// is remembered and resolved when inodes are written.
func (p *packer) duplicate(n *inode, key contentKey) bool {
	first, ok := p.seen[key]
	if !ok {
		p.seen[key] = n
		return false
	}
	n.sameAs = first
	return true
}

func (p *packer) flushFragment() error {
	if p.pending == nil {
		return nil
	}
	j := p.pending
	p.pending = nil
	if len(j.raw) == 0 {
		p.fragments--
		p.free <- j
		return nil
	}
	p.submit(j)
	return nil
}

// readAll opens e, lets use read it and checks that nothing follows: a file
// that grew under the builder would otherwise be cut without a word.
func readAll(e *tree.Entry, use func(io.Reader) error) (err error) {
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	limited := &io.LimitedReader{R: r, N: e.Size + 1}
	if err := use(limited); err != nil {
		return err
	}
	var one [1]byte
	if limited.N == 0 {
		return grown(e.Size)
	}
	switch n, err := io.ReadFull(limited, one[:]); {
	case n > 0:
		return grown(e.Size)
	case err != io.EOF:
		return err
	}
	if limited.N != 1 {
		return shortRead(io.ErrUnexpectedEOF, e.Size)
	}
	return nil
}

func grown(size int64) error {
	return fault.New(fault.Integrity, "holds more than the %d bytes that it had when it was listed", size).
		WithMend("Build again while nothing writes to it.")
}

func shortRead(err error, size int64) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fault.New(fault.Integrity, "ends before the %d bytes that it had when it was listed", size).
			WithMend("Build again while nothing writes to it.")
	}
	return err
}

var zeros [64 << 10]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
