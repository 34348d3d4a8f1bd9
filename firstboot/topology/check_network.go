package topology

import (
	"net/netip"
	"slices"
)

// edges are the first and the last address of an IPv4 network, which no machine
// may have: the network's own and broadcast (RFC 1122, 3.2.1.3).
func edges(p netip.Prefix) (first, last netip.Addr) {
	first = p.Masked().Addr()
	b := first.As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return first, netip.AddrFrom4(b)
}

func (c *checker) networks() {
	for i, n := range c.Networks {
		field := "networks." + n.Name + ".subnet"
		if !n.Subnet.IsValid() {
			continue
		}
		if !n.Subnet.Addr().Is4() {
			c.wrong(field, "give an IPv4 network", "%s: the networks of a cluster are IPv4", n.Subnet)
			c.Networks[i].Subnet = netip.Prefix{}
			continue
		}
		if n.Subnet.Bits() < 8 || n.Subnet.Bits() > 30 {
			c.wrong(field, "give a prefix length of 8 to 30; 24 is usual", "%s is no network for a cluster", n.Subnet)
		}
		if a := n.Subnet.Addr(); a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240 {
			c.wrong(field, "use addresses of your site, or private ones (RFC 1918)", "%s is set apart for other uses", n.Subnet)
		}
		for _, other := range c.Networks[:i] {
			if other.Subnet.IsValid() && other.Subnet.Overlaps(n.Subnet) {
				c.wrong(field, "give every network addresses of its own", "%s overlaps network %s (%s, line %d)", n.Subnet,
					short(other.Name), other.Subnet, c.line("networks."+other.Name))
			}
		}
	}
}

// fits checks that an address is one that a machine of a network may have.
func (c *checker) fits(field string, a netip.Addr, n Network) bool {
	if !a.IsValid() || !n.Subnet.IsValid() {
		return false
	}
	first, last := edges(n.Subnet)
	mend := "give it a free address of " + n.Subnet.String()
	switch {
	case !n.Subnet.Contains(a):
		c.wrong(field, mend, "%s is outside the subnet %s of network %s", a, n.Subnet, short(n.Name))
	case a == first:
		c.wrong(field, mend, "%s is the network's own address", a)
	case a == last:
		c.wrong(field, mend, "%s is the broadcast address of %s", a, n.Subnet)
	default:
		return true
	}
	return false
}

// addressing checks every address against its network and against all others.
func (c *checker) addressing() {
	const mend = "give every node, gateway and virtual address one of its own"
	taken, cards := c.register(), c.register()
	for _, n := range c.Networks {
		field := "networks." + n.Name + ".gateway"
		if c.fits(field, n.Gateway, n) {
			taken.add(field, n.Gateway.String(), mend, "the address %s", n.Gateway)
		}
	}
	for i, n := range c.Nodes {
		for j, nic := range n.NICs {
			field := at(at("nodes", i)+".nics", j)
			network, known := c.Network(nic.Network)
			switch {
			case nic.Network != "" && !known:
				c.unknown(field+".network", "network", nic.Network, c.networkNames())
			case known:
				c.fits(field+".address", nic.Address, network)
			}
			if nic.Address.IsValid() {
				taken.add(field+".address", nic.Address.String(), mend, "the address %s", nic.Address)
			}
			cards.add(field+".mac", nic.MAC, "give every card an address of its own", "the MAC address %s", nic.MAC)
			if nic.MAC == "" && len(n.NICs) > 1 && c.lines[field+".mac"] == 0 {
				c.wrong(field+".mac", "give the card's MAC address, as the hypervisor shows it",
					"is missing: with %d cards the node cannot tell which is which", len(n.NICs))
			}
			for _, other := range n.NICs[:j] {
				if known && other.Network == nic.Network {
					c.wrong(field+".network", "put each card on a network of its own", "two cards of the node are on network %s", short(nic.Network))
				}
			}
		}
	}
	for i, v := range c.VIPs {
		field := at("vips", i)
		network, known := c.Network(v.Network)
		if v.Network != "" && !known {
			c.unknown(field+".network", "network", v.Network, c.networkNames())
		}
		if v.Network == "" {
			network, known = c.around(v.Address)
			c.VIPs[i].Network = network.Name
			whole := !slices.ContainsFunc(c.Networks, func(n Network) bool { return !n.Subnet.IsValid() })
			if !known && v.Address.IsValid() && len(c.Networks) > 0 && whole {
				c.wrong(field+".address", "give it a free address of a network on which its holders are", "%s is outside the subnet of every network", v.Address)
			}
		}
		if known {
			c.fits(field+".address", v.Address, network)
		}
		if v.Address.IsValid() {
			taken.add(field+".address", v.Address.String(), mend, "the address %s", v.Address)
		}
	}
}

// around finds the network that an address is in.
func (c *checker) around(a netip.Addr) (Network, bool) {
	for _, n := range c.Networks {
		if a.IsValid() && n.Subnet.IsValid() && n.Subnet.Contains(a) {
			return n, true
		}
	}
	return Network{}, false
}

func (c *checker) networkNames() []string {
	var names []string
	for _, n := range c.Networks {
		names = append(names, n.Name)
	}
	return names
}

// routes checks that nodes on different networks can reach each other.
func (c *checker) routes() {
	used := map[string]int{} // the first node on each network, by its first card
	for i, n := range c.Nodes {
		if len(n.NICs) > 0 {
			if _, ok := used[n.NICs[0].Network]; !ok {
				used[n.NICs[0].Network] = i
			}
		}
	}
	if len(used) < 2 {
		return
	}
	for _, n := range c.Networks {
		if i, ok := used[n.Name]; ok && !n.Gateway.IsValid() && c.lines["networks."+n.Name+".gateway"] == 0 {
			c.wrong("networks."+n.Name+".gateway", "give the address of its router",
				"is missing: %s could not reach the nodes on other networks", short(c.Nodes[i].Name))
		}
	}
}
