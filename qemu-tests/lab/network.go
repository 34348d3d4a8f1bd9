package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
	"github.com/slipwayhq/slipway/qemu-tests/lab/gateway"
)

// network is what connects the machines of a cluster: the switch, on which each
// network of the topology is a VLAN, and the gateway with an address in each.
type network struct {
	sw      *ether.Switch
	gateway *gateway.Gateway
	vlans   map[string]uint16 // by the network's name
	tagged  map[string]bool   // networks whose frames carry their tag at the nodes
	first   netip.Addr        // of the gateway's addresses
}

func newNetwork(t *topology.Topology, log logrus.FieldLogger) (*network, error) {
	n := &network{sw: ether.New(ether.Options{}), vlans: vlansOf(t), tagged: map[string]bool{}}
	var networks []gateway.Network
	for _, net := range t.Networks {
		n.tagged[net.Name] = net.VLAN != 0
		addresses, err := gatewayAddresses(t, net)
		if err != nil {
			n.sw.Close()
			return nil, err
		}
		if !n.first.IsValid() {
			n.first = addresses[0].Addr()
		}
		networks = append(networks, gateway.Network{Name: net.Name, VLAN: n.vlans[net.Name], Addresses: addresses, MTU: net.MTU})
	}
	var zones []string
	if t.Domain != "" {
		zones = []string{t.Domain}
	}
	g, err := gateway.New(n.sw, networks, gateway.Options{Zones: zones, Names: namesOf(t, n.first), Log: log})
	if err != nil {
		n.sw.Close()
		return nil, err
	}
	n.gateway = g
	return n, nil
}

// vlansOf gives each network a VLAN of the switch: its own, or, for one whose
// frames carry no tag, one that no other network has.
func vlansOf(t *topology.Topology) map[string]uint16 {
	vlans, taken := map[string]uint16{}, map[uint16]bool{}
	for _, n := range t.Networks {
		if n.VLAN != 0 {
			vlans[n.Name] = uint16(n.VLAN)
			taken[uint16(n.VLAN)] = true
		}
	}
	free := uint16(1)
	for _, n := range t.Networks {
		if n.VLAN != 0 {
			continue
		}
		for taken[free] {
			free++
		}
		vlans[n.Name] = free
		taken[free] = true
	}
	return vlans
}

// gatewayAddresses are those that the gateway has in a network: the network's
// gateway, and the addresses of resolvers and time servers in it that are no
// node's, for the gateway is both. Where the topology names none, it takes the
// last address that is free, since the outside reaches the nodes through it.
func gatewayAddresses(t *topology.Topology, n topology.Network) ([]netip.Prefix, error) {
	taken := takenIn(t)
	var out []netip.Prefix
	add := func(a netip.Addr) {
		p := netip.PrefixFrom(a, n.Subnet.Bits())
		if n.Subnet.Contains(a) && !taken[a] && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	add(n.Gateway)
	for _, a := range t.DNS.Servers {
		add(a)
	}
	for _, server := range t.NTP {
		if a, err := netip.ParseAddr(server); err == nil {
			add(a)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	// The last address of an IPv4 network is its broadcast address (RFC 919, 7).
	for a := lastAddress(n.Subnet).Prev(); n.Subnet.Contains(a) && a != n.Subnet.Addr(); a = a.Prev() {
		if add(a); len(out) > 0 {
			return out, nil
		}
	}
	return nil, fault.New(fault.Input, "network %s: %s has no address left for the lab's gateway", n.Name, n.Subnet)
}

// takenIn are the addresses of nodes and the virtual ones.
func takenIn(t *topology.Topology) map[netip.Addr]bool {
	taken := map[netip.Addr]bool{}
	for _, n := range t.Nodes {
		for _, nic := range n.NICs {
			taken[nic.Address] = true
		}
	}
	for _, v := range t.VIPs {
		taken[v.Address] = true
	}
	return taken
}

// lastAddress is the last address of a network.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// namesOf are the names that the lab's DNS knows: nodes by their names in the
// domain, virtual addresses by theirs and by those that the topology gives them,
// and time servers, which are all the gateway here.
func namesOf(t *topology.Topology, gateway netip.Addr) map[string][]netip.Addr {
	names := map[string][]netip.Addr{}
	add := func(name string, a netip.Addr) {
		if !strings.Contains(name, ".") && t.Domain != "" {
			name += "." + t.Domain
		}
		if !slices.Contains(names[name], a) {
			names[name] = append(names[name], a)
		}
	}
	for _, n := range t.Nodes {
		add(n.Name, n.Address())
	}
	for _, v := range t.VIPs {
		add(v.Name, v.Address)
		for _, name := range v.Names {
			add(name, v.Address)
		}
	}
	for _, server := range t.NTP {
		if _, err := netip.ParseAddr(server); err != nil {
			add(server, gateway)
		}
	}
	return names
}

// cards are the NICs of a node, each in its network.
func (n *network) cards(node topology.Node) []NIC {
	var cards []NIC
	for i, nic := range node.NICs {
		vlan := n.vlans[nic.Network]
		port := ether.PortConfig{VLAN: vlan}
		if n.tagged[nic.Network] {
			port = ether.PortConfig{Trunk: []uint16{vlan}}
		}
		cards = append(cards, NIC{MAC: nic.MAC, Switch: n.sw, Port: port, PortName: fmt.Sprintf("%s/%d", node.Name, i)})
	}
	return cards
}

func (n *network) block(node string, blocked bool) {
	if blocked {
		n.sw.Cut(node)
	} else {
		n.sw.Restore(node)
	}
}

func (n *network) dial(ctx context.Context, address string) (net.Conn, error) {
	return n.gateway.DialContext(ctx, "tcp", address)
}

func (n *network) close() {
	n.gateway.Close()
	n.sw.Close()
}
