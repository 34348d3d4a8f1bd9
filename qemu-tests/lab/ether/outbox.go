package ether

import (
	"encoding/binary"
	"sync"
)

// outbox is a bounded queue of bytes with one writer behind it. Everything that
// waits goes out in one write, and two buffers take turns, so that a busy port
// costs one copy for each frame, few system calls and no garbage.
type outbox struct {
	limit int

	mu      sync.Mutex
	filled  sync.Cond
	pending []byte
	closed  bool // nothing more goes in
	dropped bool // nothing more goes out
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.filled.L = &o.mu
	return o
}

// add puts a frame behind its length into the queue, and says whether there was room.
func (o *outbox) add(f frame, tagged bool) bool {
	size := f.size(tagged)
	return o.put(lengthSize+size, func(b []byte) []byte {
		return f.appendTo(binary.BigEndian.AppendUint32(b, uint32(size)), tagged)
	})
}

// put appends size bytes, or nothing if they do not fit.
func (o *outbox) put(size int, appendTo func([]byte) []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || len(o.pending)+size > o.limit {
		return false
	}
	if len(o.pending) == 0 {
		o.filled.Signal()
	}
	o.pending = appendTo(o.pending)
	return true
}

// finish lets out what waits, and nothing more in.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.filled.Signal()
}

// drop throws away what waits, and lets nothing more in.
func (o *outbox) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed, o.dropped = true, true
	o.filled.Signal()
}

// drain writes what is put in until the outbox is closed or writing fails;
// ended is told why.
func (o *outbox) drain(write func([]byte) error, ended func(error)) {
	var busy []byte
	for {
		o.mu.Lock()
		for len(o.pending) == 0 && !o.closed {
			o.filled.Wait()
		}
		if len(o.pending) == 0 || o.dropped {
			o.mu.Unlock()
			ended(nil)
			return
		}
		busy, o.pending = o.pending, busy[:0]
		o.mu.Unlock()
		if err := write(busy); err != nil {
			ended(err)
			return
		}
	}
}
