package ether

import (
	"encoding/binary"
	"io"
	"slices"
	"time"
)

// captureQueue bounds what waits to be written to a capture.
const captureQueue = 4 << 20

// Capture writes frames to w as a pcap file (IETF draft-ietf-opsawg-pcap, magic
// number for nanoseconds) until stop is called. Without names it shows every
// frame once, as it enters the switch, tagged with its VLAN so that networks can
// be told apart. With the names of ports or machines it shows what goes over
// their cables, in both directions and in the form that it has there.
//
// The switch does not wait for w: frames that do not fit into the queue are
// missing. stop returns the error of writing, once w is no longer used.
func (s *Switch) Capture(w io.Writer, names ...string) (stop func() error) {
	c := &capture{names: names, out: newOutbox(captureQueue), done: make(chan struct{})}
	c.out.put(24, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, 0xa1b23c4d)
		b = binary.LittleEndian.AppendUint16(b, 2)
		b = binary.LittleEndian.AppendUint16(b, 4)
		b = append(b, make([]byte, 8)...)
		b = binary.LittleEndian.AppendUint32(b, MaxFrame)
		return binary.LittleEndian.AppendUint32(b, 1) // LINKTYPE_ETHERNET
	})
	go c.out.drain(func(b []byte) error {
		_, err := w.Write(b)
		return err
	}, func(err error) {
		c.err = err
		close(c.done)
	})
	s.mu.Lock()
	s.captures = append(s.captures, c)
	s.mu.Unlock()
	return func() error {
		s.mu.Lock()
		s.captures = slices.DeleteFunc(s.captures, func(other *capture) bool { return other == c })
		s.mu.Unlock()
		return c.end()
	}
}

type capture struct {
	names []string
	out   *outbox
	done  chan struct{}
	err   error
}

func (c *capture) end() error {
	c.out.finish()
	<-c.done
	return c.err
}

func (c *capture) wants(port string) bool {
	return slices.ContainsFunc(c.names, func(name string) bool { return fits(name, port) })
}

func (c *capture) arrived(now time.Time, from *Port, f frame) {
	if len(c.names) == 0 {
		c.record(now, f, true)
	} else if c.wants(from.name) {
		c.record(now, f, from.cfg.tagged(f.vlan))
	}
}

func (c *capture) left(now time.Time, to *Port, f frame, tagged bool) {
	if c.wants(to.name) {
		c.record(now, f, tagged)
	}
}

func (c *capture) record(now time.Time, f frame, tagged bool) {
	size := f.size(tagged)
	c.out.put(16+size, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, uint32(now.Unix()))
		b = binary.LittleEndian.AppendUint32(b, uint32(now.Nanosecond()))
		b = binary.LittleEndian.AppendUint32(b, uint32(size))
		b = binary.LittleEndian.AppendUint32(b, uint32(size))
		return f.appendTo(b, tagged)
	})
}
