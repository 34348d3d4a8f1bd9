package acd

import (
	"net"
	"net/netip"
	"testing"

	"github.com/mdlayher/arp"
)

func FuzzConflict(f *testing.F) {
	address := netip.MustParseAddr("192.0.2.10")
	for _, sender := range []string{"192.0.2.10", "0.0.0.0", "192.0.2.1"} {
		p, err := arp.NewPacket(arp.OperationRequest, net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr(sender), nobody, address)
		if err != nil {
			f.Fatal(err)
		}
		data, err := p.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		if holder := conflict(data, address); (holder != nil) != (sender != "192.0.2.1") {
			f.Errorf("from %s: %v", sender, holder)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if holder := conflict(data, address); holder != nil && len(holder) != 6 {
			t.Errorf("%v", holder)
		}
	})
}
