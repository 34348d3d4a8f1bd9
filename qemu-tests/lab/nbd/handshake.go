package nbd

import (
	"bufio"
	"encoding/binary"
	"io"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Magic numbers of the handshake (proto.md, "Newstyle negotiation").
const (
	magicServer = 0x4e42444d41474943 // NBDMAGIC
	magicOption = 0x49484156454F5054 // IHAVEOPT
	magicAnswer = 0x3e889045565a9
)

// Handshake and client flags; they mean the same on both sides.
const (
	fixedNewstyle = 1 << 0
	noZeroes      = 1 << 1
)

// Options (proto.md, "Option types").
const (
	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7
)

// Option replies (proto.md, "Option reply types").
const (
	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repErrUnsup   = 1<<31 + 1
	repErrInvalid = 1<<31 + 3
	repErrUnknown = 1<<31 + 6
)

// Kinds of information about an export.
const (
	infoExport    = 0
	infoBlockSize = 3
)

// maxOption bounds the data of an option: a name has at most 4096 bytes
// (proto.md, "Conventions").
const maxOption = 64 << 10

// maxPayload is the most that a request may carry (proto.md, "Size constraints").
const maxPayload = 32 << 20

// transmissionFlags say what the disk can do (proto.md, "Transmission flags").
const transmissionFlags = 1<<0 | // there are flags
	1<<2 | // FLUSH
	1<<3 | // FUA
	1<<5 | // TRIM
	1<<6 | // WRITE_ZEROES
	1<<11 // zeros take less time than data

// handshake brings a client to the transmission phase. It says false if the
// client went away instead, in good order.
func handshake(r *bufio.Reader, w io.Writer, size int64) (bool, error) {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, fixedNewstyle|noZeroes)
	if _, err := w.Write(hello); err != nil {
		return false, err
	}
	var flags uint32
	if err := binary.Read(r, binary.BigEndian, &flags); err != nil {
		return false, err
	}
	if flags&^(fixedNewstyle|noZeroes) != 0 {
		return false, fault.New(fault.Failed, "NBD: client flags %#x are unknown", flags)
	}
	for {
		option, data, err := readOption(r)
		if err != nil {
			return false, err
		}
		h := answerer{w, option}
		switch option {
		case optExportName:
			return true, exportName(w, data, size, flags&noZeroes != 0)
		case optAbort:
			return false, h.answer(repAck, nil)
		case optList:
			err = h.list(data)
		case optInfo, optGo:
			var found bool
			if found, err = h.info(data, size); err == nil && found && option == optGo {
				return true, nil
			}
		default:
			err = h.answer(repErrUnsup, nil)
		}
		if err != nil {
			return false, err
		}
	}
}

func readOption(r io.Reader) (option uint32, data []byte, err error) {
	var head struct {
		Magic          uint64
		Option, Length uint32
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return 0, nil, err
	}
	if head.Magic != magicOption {
		return 0, nil, fault.New(fault.Failed, "NBD: an option begins with %#x", head.Magic)
	}
	if head.Length > maxOption {
		return 0, nil, fault.New(fault.Failed, "NBD: option %d carries %d bytes", head.Option, head.Length)
	}
	data = make([]byte, head.Length)
	_, err = io.ReadFull(r, data)
	return head.Option, data, err
}

// exportName answers the old way into the transmission phase, which has no way to
// refuse but to end.
func exportName(w io.Writer, name []byte, size int64, short bool) error {
	if len(name) != 0 {
		return fault.New(fault.Failed, "NBD: there is no export %.64q", name)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(size))
	b = binary.BigEndian.AppendUint16(b, transmissionFlags)
	if !short {
		b = append(b, make([]byte, 124)...)
	}
	_, err := w.Write(b)
	return err
}

// answerer answers one option.
type answerer struct {
	w      io.Writer
	option uint32
}

func (a answerer) answer(kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicAnswer)
	b = binary.BigEndian.AppendUint32(b, a.option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := a.w.Write(append(b, data...))
	return err
}

// list names the one export: the disk, whose name is empty.
func (a answerer) list(data []byte) error {
	if len(data) != 0 {
		return a.answer(repErrInvalid, nil)
	}
	if err := a.answer(repServer, make([]byte, 4)); err != nil {
		return err
	}
	return a.answer(repAck, nil)
}

// info says what the disk is, whatever of that was asked for, and whether the
// client named the right one.
func (a answerer) info(data []byte, size int64) (found bool, err error) {
	name, ok := wantedExport(data)
	switch {
	case !ok:
		return false, a.answer(repErrInvalid, nil)
	case name != "":
		return false, a.answer(repErrUnknown, nil)
	}
	export := binary.BigEndian.AppendUint16(nil, infoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(size))
	export = binary.BigEndian.AppendUint16(export, transmissionFlags)
	blocks := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{sectorSize, pageSize, maxPayload} {
		blocks = binary.BigEndian.AppendUint32(blocks, n)
	}
	for _, info := range [][]byte{export, blocks} {
		if err := a.answer(repInfo, info); err != nil {
			return false, err
		}
	}
	return true, a.answer(repAck, nil)
}

// wantedExport reads the data of INFO and GO: a name behind its length, the number
// of wishes, and two bytes for each.
func wantedExport(data []byte) (name string, ok bool) {
	if len(data) < 4 {
		return "", false
	}
	length, data := binary.BigEndian.Uint32(data), data[4:]
	if uint64(len(data)) < uint64(length)+2 {
		return "", false
	}
	name, data = string(data[:length]), data[length:]
	wishes, data := binary.BigEndian.Uint16(data), data[2:]
	return name, len(data) == 2*int(wishes)
}
