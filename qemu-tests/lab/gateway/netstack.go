package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// sendQueue bounds the packets on their way from the stack to one port.
const sendQueue = 512

// link is one network card of a stack.
type link struct {
	port      string
	cfg       ether.PortConfig
	mac       net.HardwareAddr
	mtu       int
	addresses []netip.Prefix
}

// netstack is a network stack whose cards are plugged into a switch.
type netstack struct {
	*stack.Stack
	ports   []*ether.Port
	stop    context.CancelFunc
	sending sync.WaitGroup
}

// newNetstack makes a stack that reaches the networks of its links and nothing
// else: it has no default route.
func newNetstack(sw *ether.Switch, links []link) (*netstack, error) {
	ctx, stop := context.WithCancel(context.Background())
	n := &netstack{
		Stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{arp.NewProtocol, ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
		stop: stop,
	}
	sack := tcpip.TCPSACKEnabled(true)
	n.SetTransportProtocolOption(tcp.ProtocolNumber, &sack) // cannot fail: the protocol has this option
	var routes []tcpip.Route
	for i, l := range links {
		id := tcpip.NICID(i + 1)
		if err := n.plug(ctx, sw, id, l); err != nil {
			n.close()
			return nil, err
		}
		for _, a := range l.addresses {
			routes = append(routes, tcpip.Route{Destination: subnet(a), NIC: id})
		}
	}
	n.SetRouteTable(routes)
	return n, nil
}

func (n *netstack) plug(ctx context.Context, sw *ether.Switch, id tcpip.NICID, l link) error {
	// The link's MTU counts the Ethernet header, that of the layer above does not.
	ch := channel.New(sendQueue, uint32(l.mtu+header.EthernetMinimumSize), tcpip.LinkAddress(l.mac))
	if err := n.CreateNIC(id, ethernet.New(ch)); err != nil {
		return fault.New(fault.Internal, "%s: %s", l.port, err)
	}
	for _, a := range l.addresses {
		if err := n.AddProtocolAddress(id, protocolAddress(a), stack.AddressProperties{}); err != nil {
			return fault.New(fault.Usage, "%s: address %s: %s", l.port, a, err)
		}
	}
	mac := [6]byte(l.mac)
	port, err := sw.Join(l.port, l.cfg, func(frame []byte) {
		// The switch floods; a card takes only what is for it or for several.
		if [6]byte(frame[:6]) != mac && frame[0]&1 == 0 {
			return
		}
		n.heed(id, frame)
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
		ch.InjectInbound(0, pkt)
		pkt.DecRef()
	})
	if err != nil {
		return err
	}
	n.ports = append(n.ports, port)
	n.sending.Add(1)
	go func() {
		defer n.sending.Done()
		for {
			pkt := ch.ReadContext(ctx)
			if pkt == nil {
				return
			}
			view := pkt.ToView()
			port.Send(view.AsSlice())
			view.Release()
			pkt.DecRef()
		}
	}()
	return nil
}

// heed takes announcements of an address that moved to another card (RFC 5227,
// 3), as VRRP makes them. The stack by itself ignores them and would keep
// sending to the old card for half a minute, which a router does not.
func (n *netstack) heed(id tcpip.NICID, frame []byte) {
	if header.Ethernet(frame).Type() != arp.ProtocolNumber {
		return
	}
	a := header.ARP(frame[header.EthernetMinimumSize:])
	if !a.IsValid() || string(a.ProtocolAddressSender()) != string(a.ProtocolAddressTarget()) {
		return
	}
	addr := tcpip.AddrFrom4Slice(a.ProtocolAddressSender())
	known, err := n.Neighbors(id, ipv4.ProtocolNumber)
	if err != nil {
		return
	}
	for _, k := range known {
		if k.Addr == addr && k.LinkAddr != "" && k.LinkAddr != tcpip.LinkAddress(a.HardwareAddressSender()) {
			n.RemoveNeighbor(id, ipv4.ProtocolNumber, addr) // an error says that it is gone
		}
	}
}

func (n *netstack) close() {
	for _, p := range n.ports {
		p.Close()
	}
	n.stop()
	n.sending.Wait()
	n.Destroy()
}

func protocolNumber(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func protocolAddress(p netip.Prefix) tcpip.ProtocolAddress {
	return tcpip.ProtocolAddress{
		Protocol:          protocolNumber(p.Addr()),
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()},
	}
}

func subnet(p netip.Prefix) tcpip.Subnet {
	return protocolAddress(p).AddressWithPrefix.Subnet()
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}
