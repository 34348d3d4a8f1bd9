package nbd

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

// defaultCache is large for a disk, so that what a guest has not flushed is in it
// for as long as the guest lets it be.
const defaultCache = 256 << 20

// Options of a disk; the zero value is good.
type Options struct {
	// Cache is how many bytes the disk holds unwritten before it writes them by
	// itself; default 256 MiB.
	Cache int64
	// Tear, unless 0, is where chance begins: a power cut then lets about every
	// second sector that was not flushed survive.
	Tear uint64
	// Manner is how the disk behaves from the beginning on.
	Manner Manner
}

// Manner is how well a disk does its work; the zero value is a good disk.
type Manner struct {
	// Latency is what each request takes longer. Requests are served one after the
	// other, as a disk with one head does, so that a second of latency is one
	// request in a second.
	Latency time.Duration
	// Bandwidth bounds the bytes in a second that are read and written; 0 is no bound.
	Bandwidth int64
	// Refuse, unless 0, is the answer to requests: EIO to all, ENOSPC to those
	// that write.
	Refuse Errno
}

// Errno is an error as the protocol knows it (proto.md, "Error values").
type Errno uint32

const (
	EIO     Errno = 5
	ENOSPC  Errno = 28
	einval  Errno = 22
	noErrno Errno = 0
)

// Stats count what has happened since the disk got power.
type Stats struct {
	Reads, Writes, Flushes uint64 // zeroing and trimming are writes
	Spills                 uint64 // how often the cache was full and was written for that
	Held                   int64  // bytes that a power cut would find in the cache now
	Dropped, Survived      int64  // bytes that the power cut found there
}

// Disk is a disk that has power.
type Disk struct {
	conn    net.Conn
	size    int64
	options Options

	cut   chan struct{} // closed when the power is cut from here
	once  sync.Once
	ended chan struct{} // closed when nothing will change the file any more
	err   error         // read it after ended

	mu      sync.Mutex
	cache   *cache
	manner  Manner
	changed chan struct{} // closed when manner is another
	stats   Stats
}

// Attach gives power to a disk whose content is in a file, and answers on a
// connection, which it takes over. The disk has power until the other side ends
// the connection: in good order, or else as by a power cut.
func Attach(conn net.Conn, path string, options Options) (*Disk, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err == nil && st.Size()%sectorSize != 0 {
		err = fault.New(fault.Input, "disk %s: %d bytes are no whole number of sectors", path, st.Size())
	}
	if err == nil {
		// Two caches over one file would each undo what the other has done.
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fault.New(fault.Usage, "disk %s is in use", path)
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	if options.Cache == 0 {
		options.Cache = defaultCache
	}
	d := &Disk{conn: conn, size: st.Size(), options: options, manner: options.Manner, cache: newCache(file),
		changed: make(chan struct{}), cut: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(d.ended)
		defer file.Close()
		defer conn.Close()
		d.err = d.end(d.serve(conn))
	}()
	return d, nil
}

// end switches off: in good order if the client took its leave, else at once.
func (d *Disk) end(served error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if served == nil {
		return d.cache.write()
	}
	var chance *rand.Rand
	if d.options.Tear != 0 {
		chance = rand.New(rand.NewPCG(d.options.Tear, 0))
	}
	var err error
	d.stats.Dropped, d.stats.Survived, err = d.cache.lose(chance)
	if d.withoutPower() || slices.ContainsFunc(hungUp, func(e error) bool { return errors.Is(served, e) }) {
		served = nil
	}
	return errors.Join(served, err)
}

// hungUp is how it looks from here when QEMU is killed.
var hungUp = []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE}

// withoutPower says whether it was cut from here.
func (d *Disk) withoutPower() bool {
	select {
	case <-d.cut:
		return true
	default:
		return false
	}
}

// Cut takes the power from the disk at once, whatever it is doing, and waits
// until it is gone.
func (d *Disk) Cut() {
	d.once.Do(func() {
		close(d.cut)
		d.conn.Close()
	})
	<-d.ended
}

// Wait waits until the disk has no power any more and says what went wrong, if it
// was neither switched off nor cut: the host could not write, or the other side
// did not speak the protocol.
func (d *Disk) Wait() error {
	<-d.ended
	return d.err
}

// Stats counts what has happened so far.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.Held = d.cache.bytes()
	return s
}

// Behave changes how the disk does its work, the request that it is at included.
func (d *Disk) Behave(m Manner) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.manner = m
	close(d.changed)
	d.changed = make(chan struct{})
}

// errCut ends the service of a disk that has lost its power.
var errCut = errors.New("the disk has lost its power")

// drag takes the time that the disk's manner asks for a request with so many
// bytes. A disk that is mended meanwhile is done at once.
func (d *Disk) drag(bytes int64) error {
	began := time.Now()
	for {
		d.mu.Lock()
		wait, changed := d.manner.takes(bytes)-time.Since(began), d.changed
		d.mu.Unlock()
		if wait <= 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-d.cut:
			timer.Stop()
			return errCut
		}
		timer.Stop()
	}
}

func (m Manner) takes(bytes int64) time.Duration {
	if m.Bandwidth <= 0 {
		return m.Latency
	}
	return m.Latency + time.Duration(float64(bytes)/float64(m.Bandwidth)*float64(time.Second))
}

// read answers READ.
func (d *Disk) read(p []byte, off int64) Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Reads++
	if d.manner.Refuse == EIO {
		return EIO
	}
	_, err := d.cache.ReadAt(p, off)
	return errnoOf(err)
}

// write answers WRITE.
func (d *Disk) write(p []byte, off int64, through bool) Errno {
	return d.change(func() error {
		if through {
			return d.cache.through(p, off)
		}
		_, err := d.cache.WriteAt(p, off)
		return err
	})
}

// zero answers WRITE_ZEROES and TRIM. Trimmed sectors are zeros here, and not
// before the next flush: a file system trims what its journal has given up, and
// must find it again if the journal's own record was lost.
func (d *Disk) zero(off, length int64, through bool) Errno {
	return d.change(func() error {
		if through {
			return d.cache.zeroThrough(off, length)
		}
		d.cache.zero(off, length)
		return nil
	})
}

func (d *Disk) change(do func() error) Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Writes++
	if d.manner.Refuse != noErrno {
		return d.manner.Refuse
	}
	err := do()
	if err == nil && d.cache.held > d.options.Cache {
		d.stats.Spills++
		err = d.cache.write()
	}
	return errnoOf(err)
}

// flush answers FLUSH.
func (d *Disk) flush() Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.Flushes++
	if d.manner.Refuse == EIO {
		return EIO
	}
	return errnoOf(d.cache.write())
}

// errnoOf is what the client hears of an error of the host.
func errnoOf(err error) Errno {
	switch {
	case err == nil:
		return noErrno
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return ENOSPC
	default:
		return EIO
	}
}
