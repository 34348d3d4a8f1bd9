package ether

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// EtherTypes (IEEE 802 numbers, IANA) of what names its sender by address.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// witness is told who sends from an address.
type witness struct {
	address netip.Addr
	seen    func(at time.Time, port string)
}

// Witness calls seen for each frame that enters the switch from an IP address,
// packets of it as well as its own claims to it by ARP (RFC 826; RFC 5227, 3),
// with the port that sent it, until stop is called. It is called while the switch
// waits, so it must not take long.
func (s *Switch) Witness(address netip.Addr, seen func(at time.Time, port string)) (stop func()) {
	w := &witness{address.Unmap(), seen}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.witnesses = append(s.witnesses, w)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.witnesses = slices.DeleteFunc(s.witnesses, func(other *witness) bool { return other == w })
	}
}

func (s *Switch) witness(now time.Time, from *Port, f frame) {
	if len(s.witnesses) == 0 {
		return
	}
	sender, ok := f.sender()
	if !ok {
		return
	}
	for _, w := range s.witnesses {
		if w.address == sender {
			w.seen(now, from.name)
		}
	}
}

// sender is the IP address that a frame says it comes from.
func (f frame) sender() (a netip.Addr, ok bool) {
	b := f.rest
	if len(b) < 2 {
		return a, false
	}
	kind, b := binary.BigEndian.Uint16(b), b[2:]
	switch {
	case kind == etherIPv4 && len(b) >= 20:
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case kind == etherIPv6 && len(b) >= 40:
		return netip.AddrFrom16([16]byte(b[8:24])), true
	case kind == etherARP && len(b) >= 28 && b[4] == 6 && b[5] == 4:
		return netip.AddrFrom4([4]byte(b[14:18])), true
	}
	return a, false
}
