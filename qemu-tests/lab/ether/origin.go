package ether

import (
	"encoding/binary"
	"net/netip"
)

// Types of payload whose source address the switch reads (IEEE 802 Numbers, IANA).
const (
	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
)

// Addresses traced at most. Beyond, all are forgotten and traced anew.
const maxOrigins = 8192

// trace notes from which port an address sends its packets, so that they are
// known again when a router has passed them on.
func (s *Switch) trace(from *Port, f frame) {
	if from.cfg.Router {
		return
	}
	if src := f.source(); src.IsValid() && s.origins[src] != from.name {
		if len(s.origins) >= maxOrigins {
			clear(s.origins)
		}
		s.origins[src] = from.name
	}
}

// origin is the port that sent a packet which a router now passes on, or "".
func (s *Switch) origin(from *Port, f frame) string {
	if !from.cfg.Router {
		return ""
	}
	return s.origins[f.source()]
}

// source is the address that an IP packet comes from (RFC 791, 3.1; RFC 8200, 3);
// no valid one for anything else.
func (f frame) source() netip.Addr {
	if len(f.rest) < 2 {
		return netip.Addr{}
	}
	packet := f.rest[2:]
	switch {
	case binary.BigEndian.Uint16(f.rest) == typeIPv4 && len(packet) >= 20:
		return netip.AddrFrom4([4]byte(packet[12:16]))
	case binary.BigEndian.Uint16(f.rest) == typeIPv6 && len(packet) >= 40:
		return netip.AddrFrom16([16]byte(packet[8:24]))
	}
	return netip.Addr{}
}
