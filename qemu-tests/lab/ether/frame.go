package ether

import (
	"encoding/binary"
	"slices"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Layout of a frame (IEEE 802.3-2018, 3.1.1) and of a VLAN tag (IEEE
// 802.1Q-2018, 9.6), which stands behind the addresses.
const (
	headerSize = 14
	tagSize    = 4
	addrsSize  = 12
	tagType    = 0x8100
	vlanMask   = 0x0fff
	maxVLAN    = 4094
)

type mac [6]byte

// group is the I/G bit: several stations, or all.
func (m mac) group() bool { return m[0]&1 != 0 }

// linkLocalGroup are the addresses that no bridge passes on (IEEE 802.1Q-2018, table 8-1).
func (m mac) linkLocalGroup() bool {
	return m[0] == 0x01 && m[1] == 0x80 && m[2] == 0xc2 && m[3] == 0 && m[4] == 0 && m[5] <= 0x0f
}

// frame is a frame taken apart. rest begins with the type of the payload; all
// of it lies in the sender's buffer and is good only until the sender returns.
type frame struct {
	dst, src mac
	vlan     uint16
	priority uint16 // the tag's bits above the VLAN
	addrs    []byte
	rest     []byte
}

type verdict int

const (
	accepted verdict = iota
	malformed
	oversized
	foreignVLAN // the port is not in the frame's VLAN
)

// PortConfig says in which networks a port is.
type PortConfig struct {
	// VLAN is where frames without a tag belong, 1 to 4094; 0: they are dropped.
	VLAN uint16
	// Trunk are the VLANs whose frames carry a tag on this port.
	Trunk []uint16
	// Router says that what comes from this port may be somebody else's: a fault between two
	// machines is then met by packets that take the way through the router, too.
	Router bool
}

func (c PortConfig) check() error {
	if c.VLAN == 0 && len(c.Trunk) == 0 {
		return fault.New(fault.Usage, "the port is in no VLAN")
	}
	if c.VLAN > maxVLAN {
		return fault.New(fault.Usage, "VLAN %d: only 1 to %d are possible", c.VLAN, maxVLAN)
	}
	for _, v := range c.Trunk {
		if v == 0 || v > maxVLAN {
			return fault.New(fault.Usage, "VLAN %d: only 1 to %d are possible", v, maxVLAN)
		}
		if v == c.VLAN {
			return fault.New(fault.Usage, "VLAN %d cannot be both tagged and untagged on one port", v)
		}
	}
	return nil
}

func (c PortConfig) tagged(vlan uint16) bool { return slices.Contains(c.Trunk, vlan) }
func (c PortConfig) member(vlan uint16) bool { return vlan == c.VLAN || c.tagged(vlan) }

// classify takes a frame apart and says to which VLAN it belongs.
func (c PortConfig) classify(raw []byte) (frame, verdict) {
	if len(raw) < headerSize {
		return frame{}, malformed
	}
	f := frame{dst: mac(raw[:6]), src: mac(raw[6:addrsSize]), vlan: c.VLAN, addrs: raw[:addrsSize], rest: raw[addrsSize:]}
	if f.src.group() {
		return frame{}, malformed
	}
	if binary.BigEndian.Uint16(f.rest) == tagType {
		if len(f.rest) < tagSize+2 {
			return frame{}, malformed
		}
		tag := binary.BigEndian.Uint16(f.rest[2:])
		f.priority, f.rest = tag&^vlanMask, f.rest[tagSize:]
		// VLAN 0 says that the tag holds a priority only (9.6, table 9-2).
		if v := tag & vlanMask; v != 0 {
			if !c.tagged(v) {
				return frame{}, foreignVLAN
			}
			f.vlan = v
		}
	}
	if f.vlan == 0 {
		return frame{}, foreignVLAN
	}
	if f.size(false) > headerSize+MaxMTU {
		return frame{}, oversized
	}
	return f, accepted
}

// size is how many bytes appendTo appends.
func (f frame) size(tagged bool) int {
	n := addrsSize + len(f.rest)
	if tagged {
		n += tagSize
	}
	return n
}

// appendTo appends the frame as it looks on a cable.
func (f frame) appendTo(b []byte, tagged bool) []byte {
	b = append(b, f.addrs...)
	if tagged {
		b = binary.BigEndian.AppendUint16(b, tagType)
		b = binary.BigEndian.AppendUint16(b, f.priority|f.vlan)
	}
	return append(b, f.rest...)
}

// clone is the frame in memory of its own.
func (f frame) clone() frame {
	b := f.appendTo(make([]byte, 0, f.size(false)), false)
	f.addrs, f.rest = b[:addrsSize], b[addrsSize:]
	return f
}
