package ether

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/slipwayhq/slipway/internal/fault"
)

// maxLength is the longest frame that QEMU itself would send or take
// (NET_BUFSIZE in include/net/net.h). A greater length means that the two sides
// no longer agree where frames begin.
const maxLength = 4096 + 65536

const lengthSize = 4

// Stats are what a port has counted since it was plugged in. In is towards the switch.
type Stats struct {
	FramesIn, BytesIn   uint64
	FramesOut, BytesOut uint64
	Malformed           uint64 // shorter than a header, a tag cut off, sent by a group address
	Oversized           uint64 // greater than MaxFrame
	ForeignVLAN         uint64 // of a network in which the port is not
	Overflow            uint64 // for this port, while its queue was full
	Cut                 uint64 // in either direction, while the cable was cut
	Lost                uint64 // for this port, by a fault on the path
}

// Port is a place in the switch with something plugged in.
type Port struct {
	s    *Switch
	name string
	cfg  PortConfig
	conn net.Conn // nil for a function of this process
	out  *outbox
	// later holds what a fault delays; stats and later are guarded by s.mu.
	later *delayLine
	stats Stats

	once sync.Once
	done chan struct{}
	err  error // why it was unplugged; read it after done
}

// Attach plugs in a socket that speaks QEMU's framing. The port takes the
// connection over, and unplugs itself when the other side ends it.
//
// The name is MACHINE/NIC by convention: faults may name the port, or all
// ports of the machine by the part before the slash.
func (s *Switch) Attach(name string, conn net.Conn, cfg PortConfig) (*Port, error) {
	p, err := s.newPort(name, cfg)
	if err != nil {
		return nil, err
	}
	p.conn = conn
	if err := s.plug(p); err != nil {
		return nil, err
	}
	go p.out.drain(func(b []byte) error {
		_, err := conn.Write(b)
		return err
	}, p.unplug)
	go func() { p.unplug(p.read(conn)) }()
	return p, nil
}

// Join plugs in a function of this process: receive is given the frames for the
// port one after the other, each good only until it returns. Frames go the other
// way by Send, which receive may call.
func (s *Switch) Join(name string, cfg PortConfig, receive func(frame []byte)) (*Port, error) {
	p, err := s.newPort(name, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.plug(p); err != nil {
		return nil, err
	}
	go p.out.drain(func(b []byte) error {
		for len(b) > 0 {
			n := lengthSize + int(binary.BigEndian.Uint32(b))
			receive(b[lengthSize:n:n])
			b = b[n:]
		}
		return nil
	}, p.unplug)
	return p, nil
}

func (s *Switch) newPort(name string, cfg PortConfig) (*Port, error) {
	if name == "" {
		return nil, fault.New(fault.Usage, "a port has no name")
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	p := &Port{s: s, name: name, cfg: cfg, out: newOutbox(s.opts.Queue), done: make(chan struct{})}
	p.later = &delayLine{p: p, limit: s.opts.Queue}
	return p, nil
}

// Name is the port's name.
func (p *Port) Name() string { return p.name }

// Send brings a frame into the switch, as if it came over the port's cable. The
// caller keeps the memory.
func (p *Port) Send(frame []byte) { p.s.forward(p, frame) }

// Done is closed when the port was unplugged, by Close or by the other side.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err says why the port was unplugged, after Done; nil if it was closed here or
// the other side ended in good order.
func (p *Port) Err() error { return p.err }

// Close unplugs the port; what waits for it is gone.
func (p *Port) Close() { p.unplug(nil) }

func (p *Port) unplug(err error) {
	p.once.Do(func() {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			p.err = err
		}
		p.s.unplug(p)
		p.out.drop()
		if p.conn != nil {
			p.conn.Close()
		}
		close(p.done)
	})
}

// read takes frames from a connection until it ends.
func (p *Port) read(conn io.Reader) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	buf := make([]byte, MaxFrame)
	for {
		size, err := readFrame(r, buf)
		switch {
		case errors.Is(err, errOversized):
			p.s.mu.Lock()
			p.stats.Oversized++
			p.s.mu.Unlock()
		case err != nil:
			return err
		default:
			p.s.forward(p, buf[:size])
		}
	}
}

var errOversized = errors.New("frame is too large")

// readFrame reads one frame behind its length (QEMU, net/stream.c and
// net_fill_rstate in net/net.c). A frame greater than buf is skipped.
func readFrame(r *bufio.Reader, buf []byte) (int, error) {
	var head [lengthSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxLength {
		return 0, fault.New(fault.Failed, "a frame of %d bytes is announced: the stream is out of step", size)
	}
	if int(size) > len(buf) {
		if _, err := r.Discard(int(size)); err != nil {
			return 0, err
		}
		return 0, errOversized
	}
	if _, err := io.ReadFull(r, buf[:size]); err != nil {
		return 0, err
	}
	return int(size), nil
}

func (p *Port) refused(v verdict) {
	switch v {
	case malformed:
		p.stats.Malformed++
	case oversized:
		p.stats.Oversized++
	case foreignVLAN:
		p.stats.ForeignVLAN++
	}
}
