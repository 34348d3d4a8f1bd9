package ether

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// from is a packet of a kind that says that it comes from an address.
func from(kind uint16, address string, dst, src mac) []byte {
	a := netip.MustParseAddr(address)
	packet := make([]byte, 60)
	switch at := map[uint16]int{typeIPv4: 12, etherARP: 14, typeIPv6: 8}[kind]; kind {
	case etherARP:
		packet[4], packet[5] = 6, 4 // lengths of the two addresses (RFC 826)
		fallthrough
	default:
		copy(packet[at:], a.AsSlice())
	}
	b := append(dst[:], src[:]...)
	return append(binary.BigEndian.AppendUint16(b, kind), packet...)
}

func TestAWitnessSeesWhoSendsFromAnAddress(t *testing.T) {
	s := New(Options{})
	defer s.Close()
	one, two := join(t, s, "a-lb1/0", 1, PortConfig{VLAN: 1}), join(t, s, "a-lb2/0", 2, PortConfig{Trunk: []uint16{7}})
	var seen []string
	stop := s.Witness(netip.MustParseAddr("10.77.1.10"), func(_ time.Time, port string) { seen = append(seen, port) })
	stopSix := s.Witness(netip.MustParseAddr("fd00::10"), func(_ time.Time, port string) { seen = append(seen, "six "+port) })
	one.Send(from(etherARP, "10.77.1.10", everyone, one.mac))
	one.Send(from(typeIPv4, "10.77.1.10", two.mac, one.mac))
	one.Send(from(typeIPv4, "10.77.1.11", two.mac, one.mac))
	one.Send(from(typeIPv6, "fd00::10", two.mac, one.mac))
	one.say(everyone, "something else, long enough to hold an address somewhere in it")
	tagged := from(typeIPv4, "10.77.1.10", one.mac, two.mac)
	two.Send(append(append(append([]byte{}, tagged[:addrsSize]...), 0x81, 0, 0, 7), tagged[addrsSize:]...))
	// Nobody hears what is cut off.
	s.Cut("a-lb1")
	one.Send(from(etherARP, "10.77.1.10", everyone, one.mac))
	s.Restore("a-lb1")
	one.Send(from(etherARP, "10.77.1.10", everyone, one.mac)[:30]) // cut short
	// A router passes on what others send.
	router := join(t, s, "gateway/0", 3, PortConfig{VLAN: 1, Router: true})
	router.Send(from(typeIPv4, "10.77.1.10", one.mac, router.mac))
	stop()
	stopSix()
	one.Send(from(etherARP, "10.77.1.10", everyone, one.mac))
	if got := strings.Join(seen, ", "); got != "a-lb1/0, a-lb1/0, six a-lb1/0, a-lb2/0" {
		t.Errorf("seen: %s", got)
	}
}
