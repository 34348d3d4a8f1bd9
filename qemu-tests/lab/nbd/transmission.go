package nbd

import (
	"bufio"
	"encoding/binary"
	"io"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Magic numbers of the transmission phase (proto.md, "Transmission").
const (
	magicRequest = 0x25609513
	magicReply   = 0x67446698
)

// Commands (proto.md, "Request types").
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
)

// Command flags (proto.md, "Command flags").
const (
	flagFUA      = 1 << 0
	flagNoHole   = 1 << 1
	flagFastZero = 1 << 4
)

// allowed are the flags that a command may have. FUA has a meaning for writes
// only and is harmless elsewhere. A zero without a hole is one with a hole: no
// room is ever reserved here, which takes nothing from what can be read.
var allowed = map[uint16]uint16{
	cmdRead: flagFUA, cmdWrite: flagFUA, cmdFlush: flagFUA, cmdTrim: flagFUA,
	cmdWriteZeroes: flagFUA | flagNoHole | flagFastZero,
}

// request is the head of a request.
type request struct {
	Magic  uint32
	Flags  uint16
	Type   uint16
	Cookie uint64
	Offset uint64
	Length uint32
}

// serve answers a client until it takes its leave, which is no error.
func (d *Disk) serve(conn io.ReadWriter) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	if on, err := handshake(r, conn, d.size); err != nil || !on {
		return err
	}
	var buffer []byte
	for {
		var q request
		if err := binary.Read(r, binary.BigEndian, &q); err != nil {
			return err
		}
		switch {
		case q.Magic != magicRequest:
			return fault.New(fault.Failed, "NBD: a request begins with %#x", q.Magic)
		case q.Type == cmdDisc:
			return nil
		case q.Length > maxPayload && q.Type == cmdWrite:
			return fault.New(fault.Failed, "NBD: a request carries %d bytes", q.Length)
		}
		var payload []byte
		if q.carries() {
			if cap(buffer) < int(q.Length) {
				buffer = make([]byte, q.Length)
			}
			payload = buffer[:q.Length]
		}
		if q.Type == cmdWrite {
			if _, err := io.ReadFull(r, payload); err != nil {
				return err
			}
		}
		if err := d.drag(int64(len(payload))); err != nil {
			return err
		}
		if err := q.reply(conn, d.answer(q, payload), payload); err != nil {
			return err
		}
	}
}

// carries says whether data follows the request, or its reply.
func (q request) carries() bool {
	return q.Type == cmdWrite || q.Type == cmdRead && q.Length <= maxPayload
}

// answer does what is asked for; what is read is put into payload.
func (d *Disk) answer(q request, payload []byte) Errno {
	if flags, known := allowed[q.Type]; !known || q.Flags&^flags != 0 {
		return einval
	}
	if q.Type == cmdFlush {
		return d.flush()
	}
	off, length, fua := int64(q.Offset), int64(q.Length), q.Flags&flagFUA != 0
	switch {
	case q.Offset%sectorSize != 0 || length%sectorSize != 0, q.Type == cmdRead && length > maxPayload:
		return einval
	case q.Offset > uint64(d.size) || length > d.size-off:
		if q.Type == cmdRead || q.Type == cmdTrim {
			return einval
		}
		return ENOSPC
	}
	switch q.Type {
	case cmdRead:
		return d.read(payload, off)
	case cmdWrite:
		return d.write(payload, off, fua)
	default:
		return d.zero(off, length, fua)
	}
}

// reply sends a simple reply, with the payload if that was read.
func (q request) reply(w io.Writer, e Errno, payload []byte) error {
	b := make([]byte, 0, 16+len(payload))
	b = binary.BigEndian.AppendUint32(b, magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint64(b, q.Cookie)
	if q.Type == cmdRead && e == noErrno {
		b = append(b, payload...)
	}
	_, err := w.Write(b)
	return err
}
