package seeding

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/slipwayhq/slipway/firstboot/topology"
)

// anyCard matches the only network card of a node by its name, whatever the
// hypervisor: systemd's names and the kernel's begin with e (enp1s0, ens192,
// eth0), and no virtual interface's does.
const anyCard = "e*"

// nic is a network card of a node with what is to be on it.
type nic struct {
	id      string // nic0, nic1 …
	mac     string // "" for the only card
	vlan    int    // 0 for no tag
	mtu     int
	address netip.Prefix
	gateway netip.Addr // the default route's; invalid for none
	dns     []netip.Addr
	search  []string
}

// nics works out a node's network, which is IPv4 as the topology's networks are. One card has the default route and the name
// servers: the first whose network has a gateway, or else the first of all.
func nics(t *topology.Topology, n topology.Node) []nic {
	var out []nic
	main := -1
	for i, c := range n.NICs {
		network, _ := t.Network(c.Network)
		out = append(out, nic{id: fmt.Sprintf("nic%d", i), mac: c.MAC, vlan: network.VLAN, mtu: network.MTU,
			address: netip.PrefixFrom(c.Address, network.Subnet.Bits())})
		if main < 0 && network.Gateway.IsValid() {
			main = i
			out[i].gateway = network.Gateway
		}
	}
	main = max(main, 0)
	out[main].dns, out[main].search = t.DNS.Servers, t.DNS.Search
	return out
}

// device names the interface that has the card's addresses.
func (n nic) device() string {
	if n.vlan != 0 {
		return fmt.Sprintf("vlan%d", n.vlan)
	}
	return n.id
}

// linkV2 is an interface of network-config version 2.
type linkV2 struct {
	Match       map[string]string `yaml:"match,omitempty"`
	ID          int               `yaml:"id,omitempty"`
	Link        string            `yaml:"link,omitempty"`
	Addresses   []string          `yaml:"addresses,omitempty"`
	Routes      []routeV2         `yaml:"routes,omitempty"`
	Nameservers *nameserversV2    `yaml:"nameservers,omitempty"`
	MTU         int               `yaml:"mtu,omitempty"`
}

type routeV2 struct {
	To  string `yaml:"to"`
	Via string `yaml:"via"`
}

type nameserversV2 struct {
	Addresses []string `yaml:"addresses,omitempty"`
	Search    []string `yaml:"search,omitempty"`
}

// networkConfig is network-config version 2 (cloud-init documentation,
// "Networking Config Version 2").
func networkConfig(t *topology.Topology, n topology.Node) ([]byte, error) {
	config := struct {
		Version   int               `yaml:"version"`
		Ethernets map[string]linkV2 `yaml:"ethernets"`
		VLANs     map[string]linkV2 `yaml:"vlans,omitempty"`
	}{2, map[string]linkV2{}, map[string]linkV2{}}
	for _, c := range nics(t, n) {
		card := linkV2{Match: map[string]string{"name": anyCard}, MTU: c.mtu}
		if c.mac != "" {
			card.Match = map[string]string{"macaddress": c.mac}
		}
		on := &card
		if c.vlan != 0 {
			on = &linkV2{ID: c.vlan, Link: c.id, MTU: c.mtu}
		}
		on.Addresses = []string{c.address.String()}
		if c.gateway.IsValid() {
			// Not "default", which not every renderer of cloud-init 22 knows.
			on.Routes = []routeV2{{"0.0.0.0/0", c.gateway.String()}}
		}
		if len(c.dns)+len(c.search) > 0 {
			on.Nameservers = &nameserversV2{texts(c.dns), c.search}
		}
		config.Ethernets[c.id] = card
		if c.vlan != 0 {
			config.VLANs[c.device()] = *on
		}
	}
	return toYAML(config)
}

// networkData is OpenStack's network_data.json. It can tell cards by their
// addresses alone: nil for a node whose topology gives none.
func networkData(t *topology.Topology, n topology.Node) ([]byte, error) {
	links, networks, services := []map[string]any{}, []map[string]any{}, []map[string]any{}
	for i, c := range nics(t, n) {
		if c.mac == "" {
			return nil, nil
		}
		link := map[string]any{"id": c.id, "type": "phy", "ethernet_mac_address": c.mac}
		if c.mtu != 0 {
			link["mtu"] = c.mtu
		}
		links = append(links, link)
		if c.vlan != 0 {
			links = append(links, map[string]any{"id": c.device(), "type": "vlan", "vlan_link": c.id, "vlan_id": c.vlan, "vlan_mac_address": c.mac})
		}
		network := map[string]any{"id": fmt.Sprintf("network%d", i), "link": c.device(), "type": "ipv4",
			"ip_address": c.address.Addr().String(), "netmask": net.IP(net.CIDRMask(c.address.Bits(), 32)).String()}
		if c.gateway.IsValid() {
			network["routes"] = []map[string]any{{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": c.gateway.String()}}
		}
		networks = append(networks, network)
		for _, server := range c.dns {
			services = append(services, map[string]any{"type": "dns", "address": server.String()})
		}
	}
	return json.MarshalIndent(map[string]any{"links": links, "networks": networks, "services": services}, "", "  ")
}

func texts(addresses []netip.Addr) []string {
	var out []string
	for _, a := range addresses {
		out = append(out, a.String())
	}
	return out
}
