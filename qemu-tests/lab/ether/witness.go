package ether

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// etherARP is the type of ARP (IEEE 802 Numbers, IANA).
const etherARP = 0x0806

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
	// What a router passes on is another's.
	if len(s.witnesses) == 0 || from.cfg.Router {
		return
	}
	sender := f.sender()
	for _, w := range s.witnesses {
		if w.address == sender {
			w.seen(now, from.name)
		}
	}
}

// sender is the IP address that a packet comes from, or that an ARP message says
// its sender has (RFC 826); no valid one for anything else.
func (f frame) sender() netip.Addr {
	if len(f.rest) < 2 || binary.BigEndian.Uint16(f.rest) != etherARP {
		return f.source()
	}
	// Lengths of the two kinds of address, of Ethernet and IPv4.
	if message := f.rest[2:]; len(message) >= 28 && message[4] == 6 && message[5] == 4 {
		return netip.AddrFrom4([4]byte(message[14:18]))
	}
	return netip.Addr{}
}
