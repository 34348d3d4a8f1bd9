package ether

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// packet is the frame of a packet between two addresses, with a text behind its header.
func packet(to, from mac, src, dst netip.Addr, text string) []byte {
	header := make([]byte, 20)
	kind := uint16(typeIPv4)
	if src.Is6() {
		header, kind = make([]byte, 40), typeIPv6
		copy(header[8:], src.AsSlice())
		copy(header[24:], dst.AsSlice())
	} else {
		copy(header[12:], src.AsSlice())
		copy(header[16:], dst.AsSlice())
	}
	b := binary.BigEndian.AppendUint16(append(to[:], from[:]...), kind)
	return append(append(b, header...), text...)
}

func TestAFaultBetweenTwoMachinesIsMetOnTheWayThroughARouterToo(t *testing.T) {
	for _, addrs := range [][3]string{{"10.0.1.1", "10.0.2.2", "10.0.1.9"}, {"fd00:1::1", "fd00:2::2", "fd00:1::9"}} {
		bubble(t, Options{}, func(t *testing.T, s *Switch) {
			ip := netip.MustParseAddr
			a, b, c := ip(addrs[0]), ip(addrs[1]), ip(addrs[2])
			one, two := PortConfig{VLAN: 1}, PortConfig{VLAN: 2}
			left, other := join(t, s, "a/0", 1, one), join(t, s, "c/0", 2, one)
			right := join(t, s, "b/0", 3, two)
			in, out := join(t, s, "gateway/one", 4, PortConfig{VLAN: 1, Router: true}), join(t, s, "gateway/two", 5, PortConfig{VLAN: 2, Router: true})
			routed := func(from *host, src netip.Addr) int {
				from.Send(packet(in.mac, from.mac, src, b, "x"))
				came := in.payloads() != "[]"
				out.Send(packet(right.mac, out.mac, src, b, "x"))
				if !came {
					t.Error("the first leg of the way is closed")
				}
				if right.payloads() == "[]" {
					return 0
				}
				return 1
			}
			right.Send(packet(out.mac, right.mac, b, a, "here I am"))
			if routed(left, a) != 1 || routed(other, c) != 1 {
				t.Error("a packet is lost without a fault")
			}
			s.Block("a", "b")
			if routed(left, a) != 0 || routed(other, c) != 1 {
				t.Error("the blocked path is the one between a and b alone")
			}
			s.Unblock("a", "b")
			s.Impair("a", Any, Path{Delay: time.Second})
			in.payloads()
			out.Send(packet(right.mac, out.mac, a, b, "x"))
			if right.payloads() == "[]" {
				t.Error("a delay of everything that a sends is met on its own leg, and once")
			}
		})
	}
}

func TestAPacketThatIsCutOffHasNoSource(t *testing.T) {
	for _, rest := range [][]byte{nil, {8}, {8, 0, 0x45, 0}, {0x86, 0xdd, 0x60}, {8, 6, 0, 1}} {
		if src := (frame{rest: rest}).source(); src.IsValid() {
			t.Errorf("% x comes from %s", rest, src)
		}
	}
}
