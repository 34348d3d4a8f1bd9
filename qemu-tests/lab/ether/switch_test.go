package ether

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// host is a computer on a port: it keeps what it gets.
type host struct {
	*Port
	mac mac

	mu  sync.Mutex
	got [][]byte
}

var everyone = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// join plugs in a host whose address ends in number.
func join(t *testing.T, s *Switch, name string, number byte, cfg PortConfig) *host {
	t.Helper()
	h := &host{mac: mac{0x52, 0x54, 0, 0, 0, number}}
	p, err := s.Join(name, cfg, func(frame []byte) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.got = append(h.got, bytes.Clone(frame))
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Port = p
	return h
}

// payloads are what came since the last call, without headers; a tag shows as "[VLAN]".
func (h *host) payloads() string {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, f := range h.got {
		rest := f[addrsSize:]
		text := ""
		if binary.BigEndian.Uint16(rest) == tagType {
			text = fmt.Sprintf("[%d]", binary.BigEndian.Uint16(rest[2:])&vlanMask)
			rest = rest[tagSize:]
		}
		all = append(all, text+string(rest[2:]))
	}
	h.got = nil
	return fmt.Sprint(all)
}

func ethernet(dst, src mac, payload string) []byte {
	b := append(append(dst[:], src[:]...), 0x88, 0xb5) // IEEE 802 local experimental ethertype
	return append(b, payload...)
}

func taggedFrame(dst, src mac, tag uint16, payload string) []byte {
	b := append(dst[:], src[:]...)
	b = binary.BigEndian.AppendUint16(b, tagType)
	b = binary.BigEndian.AppendUint16(b, tag)
	return append(append(b, 0x88, 0xb5), payload...)
}

func (h *host) say(to mac, payload string) { h.Send(ethernet(to, h.mac, payload)) }

func expect(t *testing.T, h *host, want string) {
	t.Helper()
	if got := h.payloads(); got != want {
		t.Errorf("%s got %s, want %s", h.Name(), got, want)
	}
}

// bubble runs a test on a clock of its own, with a switch that is closed after it.
func bubble(t *testing.T, opts Options, f func(t *testing.T, s *Switch)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := New(opts)
		defer s.Close()
		f(t, s)
	})
}

var access1, access2 = PortConfig{VLAN: 1}, PortConfig{VLAN: 2}

func TestUnknownAddressesAreFloodedAndKnownOnesAreNot(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		a.say(b.mac, "who are you")
		expect(t, b, "[who are you]")
		expect(t, c, "[who are you]")
		b.say(a.mac, "b")
		expect(t, a, "[b]")
		expect(t, c, "[]")
		a.say(b.mac, "hello b")
		expect(t, b, "[hello b]")
		expect(t, c, "[]")
		a.say(everyone, "all")
		expect(t, a, "[]")
		expect(t, b, "[all]")
		expect(t, c, "[all]")
	})
}

func TestAddressesAreForgottenAfterTheirTime(t *testing.T) {
	bubble(t, Options{Ageing: time.Minute}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		b.say(everyone, "here")
		c.payloads()
		time.Sleep(59 * time.Second)
		a.say(b.mac, "1")
		expect(t, c, "[]")
		time.Sleep(time.Second)
		a.say(b.mac, "2")
		expect(t, c, "[2]")
	})
}

func TestAnAddressThatMovesIsFollowed(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		b.say(everyone, "here")
		c.Send(ethernet(everyone, b.mac, "no, here"))
		b.payloads()
		a.say(b.mac, "x")
		expect(t, b, "[]")
		expect(t, c, "[here x]")
	})
}

func TestWhatAPortTaughtIsForgottenWithIt(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		b.say(everyone, "here")
		c.payloads()
		b.Close()
		a.say(b.mac, "still there?")
		expect(t, c, "[still there?]")
		b = join(t, s, "b", 2, access1)
		a.say(b.mac, "again?")
		expect(t, b, "[again?]")
	})
}

func TestMoreAddressesThanFitAreFlooded(t *testing.T) {
	bubble(t, Options{Queue: 64 << 20}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access1)
		for i := range maxStations {
			a.Send(ethernet(everyone, mac{2, 0, 0, 0, byte(i >> 8), byte(i)}, ""))
		}
		b.say(everyone, "here")
		c.payloads()
		a.say(b.mac, "x")
		expect(t, c, "[x]")
		if len(s.stations) > maxStations {
			t.Errorf("%d addresses are kept", len(s.stations))
		}
		time.Sleep(301 * time.Second)
		b.say(everyone, "here")
		c.payloads()
		a.say(b.mac, "y")
		expect(t, c, "[]")
	})
}

func TestNetworksDoNotMeet(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1), join(t, s, "c", 3, access2)
		a.say(everyone, "1")
		c.say(everyone, "2")
		c.say(a.mac, "3")
		expect(t, a, "[]")
		expect(t, b, "[1]")
		expect(t, c, "[]")
		// The same address in two networks is two stations.
		c.Send(ethernet(everyone, a.mac, "4"))
		b.say(a.mac, "5")
		expect(t, a, "[5]")
	})
}

func TestATrunkCarriesSeveralNetworksWithTags(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b, c := join(t, s, "a", 1, access1), join(t, s, "b", 2, access2), join(t, s, "c", 3, PortConfig{VLAN: 3})
		trunk := join(t, s, "trunk", 9, PortConfig{VLAN: 3, Trunk: []uint16{1, 2}})
		a.say(everyone, "of 1")
		b.say(everyone, "of 2")
		c.say(everyone, "of 3")
		expect(t, trunk, "[[1]of 1 [2]of 2 of 3]")

		trunk.Send(taggedFrame(everyone, trunk.mac, 1, "to 1"))
		trunk.Send(taggedFrame(b.mac, trunk.mac, 2, "to 2"))
		trunk.say(everyone, "to 3")
		expect(t, a, "[to 1]")
		expect(t, b, "[to 2]")
		expect(t, c, "[to 3]")
	})
}

func TestPriorityIsKeptFromTrunkToTrunk(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, PortConfig{Trunk: []uint16{7}}), join(t, s, "b", 2, PortConfig{Trunk: []uint16{7}})
		sent := taggedFrame(b.mac, a.mac, 0xa007, "voice")
		a.Send(sent)
		synctest.Wait()
		if len(b.got) != 1 || !bytes.Equal(b.got[0], sent) {
			t.Errorf("got %x, want %x", b.got, sent)
		}
	})
}

func TestATagWithPriorityOnlyCountsAsNone(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		a.Send(taggedFrame(b.mac, a.mac, 0xe000, "urgent"))
		expect(t, b, "[urgent]")
	})
}

func TestFramesOfForeignNetworksAreDroppedAndCounted(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access2)
		trunk := join(t, s, "trunk", 9, PortConfig{Trunk: []uint16{1}})
		a.Send(taggedFrame(everyone, a.mac, 2, "hop")) // a VLAN that the port is not in
		trunk.say(everyone, "no tag")                  // and no VLAN for frames without
		expect(t, b, "[]")
		stats := s.Stats()
		if stats["a"].ForeignVLAN != 1 || stats["trunk"].ForeignVLAN != 1 {
			t.Errorf("%+v", stats)
		}
	})
}

func TestMalformedAndOversizedFramesAreDroppedAndCounted(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		a.Send(nil)
		a.Send(make([]byte, headerSize-1))
		a.Send(ethernet(b.mac, everyone, "from everyone"))
		a.Send(taggedFrame(b.mac, a.mac, 1, "")[:addrsSize+tagSize]) // a tag and nothing behind it
		a.say(b.mac, string(make([]byte, MaxMTU+1)))
		a.say(b.mac, string(make([]byte, MaxMTU)))
		synctest.Wait()
		if len(b.got) != 1 || len(b.got[0]) != headerSize+MaxMTU {
			t.Errorf("b got %d frames", len(b.got))
		}
		if st := s.Stats()["a"]; st.Malformed != 4 || st.Oversized != 1 || st.FramesIn != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestBridgeProtocolsStayOnTheirCable(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		a.say(mac{0x01, 0x80, 0xc2, 0, 0, 0x0e}, "LLDP")
		a.say(mac{0x01, 0x00, 0x5e, 0, 0, 0x12}, "VRRP")
		expect(t, b, "[VRRP]")
	})
}

func TestASlowPortLosesFramesAndHoldsUpNobody(t *testing.T) {
	bubble(t, Options{Queue: 1000}, func(t *testing.T, s *Switch) {
		a, b := join(t, s, "a", 1, access1), join(t, s, "b", 2, access1)
		block := make(chan struct{})
		slow, err := s.Join("slow", access1, func([]byte) { <-block })
		if err != nil {
			t.Fatal(err)
		}
		payload := string(make([]byte, 100-headerSize-lengthSize)) // ten fit
		for range 21 {
			a.say(everyone, payload)
			b.payloads()
		}
		st := s.Stats()
		// One is in the hands of the slow one, ten wait.
		if st["slow"].FramesOut != 11 || st["slow"].Overflow != 10 {
			t.Errorf("slow: %+v", st["slow"])
		}
		if st["b"].FramesOut != 21 || st["b"].Overflow != 0 {
			t.Errorf("b: %+v", st["b"])
		}
		close(block)
		slow.Close()
	})
}

func TestPortsAreCheckedBeforeTheyArePluggedIn(t *testing.T) {
	s := New(Options{})
	defer s.Close()
	nothing := func([]byte) {}
	for _, cfg := range []PortConfig{{}, {VLAN: 4095}, {Trunk: []uint16{0}}, {Trunk: []uint16{4095}}, {VLAN: 5, Trunk: []uint16{5}}} {
		if _, err := s.Join("a", cfg, nothing); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
	if _, err := s.Join("", access1, nothing); err == nil {
		t.Error("a port with no name was taken")
	}
	if _, err := s.Join("a", access1, nothing); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join("a", access1, nothing); err == nil {
		t.Error("a name was taken twice")
	}
	s.Close()
	if _, err := s.Join("b", access1, nothing); err == nil {
		t.Error("a closed switch took a port")
	}
}
