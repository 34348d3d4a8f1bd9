package netconf

import (
	"fmt"
	"net/netip"
	"time"
)

// readOpenStack reads network_data.json: links (interfaces), networks
// (addresses on them) and services (name servers for all).
func readOpenStack(root value, cfg *Config) {
	ids := map[string]int{} // OpenStack's link id → place in cfg.Links
	var dns []nameserver
	for _, e := range root.entries() {
		switch e.key {
		case "links", "networks", "services":
		default:
			root.warn(e.line, "%s is not known here and has no effect", e.key)
		}
	}
	if links, ok := root.get("links"); ok {
		items := links.items()
		for _, item := range items {
			readOpenStackLink(item, cfg, ids)
		}
		linkOpenStack(items, cfg, ids)
	}
	if networks, ok := root.get("networks"); ok {
		for _, item := range networks.items() {
			readOpenStackNetwork(item, cfg, ids)
		}
	}
	if services, ok := root.get("services"); ok {
		if d := readServices(services); len(d) > 0 {
			dns = append(dns, nameserver{line: services.node.Line, addrs: d})
		}
	}
	for _, d := range dns {
		d.apply(root.report, cfg)
	}
}

func readOpenStackLink(v value, cfg *Config, ids map[string]int) {
	l := Link{line: v.node.Line}
	var id, mac, name string
	kind := "phy"
	for _, k := range v.entries() {
		switch k.key {
		case "id":
			id = k.str()
		case "name":
			name = k.interfaceName()
		case "type":
			kind = k.str()
		case "ethernet_mac_address", "vlan_mac_address":
			mac = k.mac()
		case "mtu":
			if !k.null() {
				l.MTU = k.integer(68, 65535)
			}
		case "vlan_id":
			l.VLANID = k.integer(0, 4094)
		case "bond_mode":
			bondKey(entry{"mode", k.line, k.value}, &l.Bond)
		case "bond_miimon":
			l.Bond.MIIMonitor = time.Duration(k.integer(0, 1<<31-1)) * time.Millisecond
		case "bond_xmit_hash_policy":
			bondKey(entry{"transmit-hash-policy", k.line, k.value}, &l.Bond)
		case "vif_id", "vlan_link", "bond_links":
		default:
			v.warn(k.line, "link: key %q is not known here and has no effect", k.key)
		}
	}
	switch {
	case id == "":
		v.fail(v.node, "a link lacks its id")
		return
	case hasKey(ids, id):
		v.fail(v.node, "link %s is given twice", id)
		return
	}
	switch kind {
	case "bond":
		l.Kind, l.MAC = Bond, mac
	case "vlan":
		l.Kind, l.MAC = VLAN, mac
	default:
		// Every other type says how the host connects the card: ovs, vif, tap,
		// bridge, hw_veb … To the guest all of them are a card.
		if mac == "" {
			v.fail(v.node, "link %s lacks its ethernet_mac_address", id)
			return
		}
		l.Kind, l.Match.MAC = Ethernet, mac
	}
	// Ids are the host's, up to 40 characters long (tap1a81968a-79): the guest
	// gets short names, and a card keeps its own.
	switch {
	case name != "":
		l.ID = name
		if l.Kind == Ethernet {
			l.SetName = name
		}
	case l.Kind == Bond:
		l.ID = fmt.Sprintf("bond%d", count(cfg, Bond))
	case l.Kind == VLAN:
		l.ID = fmt.Sprintf("vlan%d", l.VLANID)
	default:
		l.ID = fmt.Sprintf("nic%d", count(cfg, Ethernet))
	}
	ids[id] = len(cfg.Links)
	cfg.Links = append(cfg.Links, l)
}

func hasKey(m map[string]int, k string) bool { _, ok := m[k]; return ok }

func count(cfg *Config, kind Kind) int {
	n := 0
	for _, l := range cfg.Links {
		if l.Kind == kind {
			n++
		}
	}
	return n
}

// linkOpenStack connects bonds with their members and VLANs with what they
// stand on, once all ids are known.
func linkOpenStack(items []value, cfg *Config, ids map[string]int) {
	// VLANs are named by what they stand on, as cloud-init does: eth0.100.
	for _, item := range items {
		id, ok := item.get("id")
		parent, ok2 := item.get("vlan_link")
		if _, named := item.get("name"); !ok || !ok2 || named || !hasKey(ids, id.str2()) || !hasKey(ids, parent.str2()) {
			continue
		}
		if l := &cfg.Links[ids[id.str2()]]; l.Kind == VLAN {
			l.ID = fmt.Sprintf("%.10s.%d", cfg.Links[ids[parent.str2()]].ID, l.VLANID)
		}
	}
	for _, item := range items {
		idv, ok := item.get("id")
		if !ok || !hasKey(ids, idv.str()) {
			continue
		}
		l := &cfg.Links[ids[idv.str()]]
		lookup := func(v value) string {
			i, ok := ids[v.str()]
			if !ok {
				v.fail(v.node, "%s: link %q is not in the document", v.name, v.str())
				return ""
			}
			return cfg.Links[i].ID
		}
		if members, ok := item.get("bond_links"); ok && l.Kind == Bond {
			for _, m := range members.items() {
				if id := lookup(m); id != "" {
					l.Members = append(l.Members, id)
				}
			}
		}
		if l.Kind != VLAN {
			continue
		}
		if parent, ok := item.get("vlan_link"); ok {
			l.Parent = lookup(parent)
		} else {
			item.fail(item.node, "a link of type vlan lacks its vlan_link")
		}
	}
}

func readOpenStackNetwork(v value, cfg *Config, ids map[string]int) {
	link, ok := v.get("link")
	if !ok {
		v.fail(v.node, "a network lacks its link")
		return
	}
	i, ok := ids[link.str()]
	if !ok {
		v.fail(link.node, "link %q is not in the document", link.str())
		return
	}
	l := &cfg.Links[i]
	kind := ""
	if t, ok := v.get("type"); ok {
		kind = t.str()
	}
	yes := true
	switch kind {
	case "ipv4_dhcp", "dhcp4", "dhcp":
		l.DHCP4 = true
	case "ipv6_dhcp", "dhcp6":
		l.DHCP6 = true
	case "ipv6_dhcpv6-stateful":
		l.DHCP6, l.AcceptRA = true, &yes
	case "ipv6_slaac", "ipv6_dhcpv6-stateless":
		l.AcceptRA = &yes
	case "ipv4", "ipv6":
		readOpenStackAddress(v, l)
	default:
		v.fail(v.node, "network type %q is not known", kind)
		return
	}
	for _, k := range v.entries() {
		switch k.key {
		case "id", "network_id", "link", "type", "ip_address", "netmask":
		case "gateway":
			if k.str() == "" {
				continue
			}
			if gw := k.addr(); gw.IsValid() {
				l.Routes = append(l.Routes, Route{Via: gw, Metric: -1})
			}
		case "routes":
			for _, item := range k.items() {
				readOpenStackRoute(item, l)
			}
		case "services":
			l.DNS = append(l.DNS, readServices(k.value)...)
		case "dns_nameservers":
			l.DNS = append(l.DNS, k.addrs()...)
		default:
			v.warn(k.line, "network: key %q is not known here and has no effect", k.key)
		}
	}
}

func readOpenStackAddress(v value, l *Link) {
	a, ok := v.get("ip_address")
	if !ok {
		v.fail(v.node, "a network of fixed addresses lacks its ip_address")
		return
	}
	if p := readV1Address(v, a); p.IsValid() {
		l.Addresses = append(l.Addresses, Address{Prefix: p})
	}
}

func readOpenStackRoute(v value, l *Link) {
	rt := Route{Metric: -1}
	for _, k := range v.entries() {
		switch k.key {
		case "network":
			rt.To = k.prefix(true)
			// The netmask stands beside it; a whole address so far means none was in it.
			if mask, ok := v.get("netmask"); ok && rt.To.IsValid() && rt.To.IsSingleIP() {
				rt.To = mask.netmask(rt.To.Addr())
			}
		case "netmask":
		case "gateway":
			rt.Via = k.addr()
		case "metric":
			rt.Metric = k.integer(0, 1<<31-1)
		case "services":
			l.DNS = append(l.DNS, readServices(k.value)...)
		default:
			v.warn(k.line, "route: key %q is not known here and has no effect", k.key)
		}
	}
	finishRoute(v, l, rt, false)
}

func readServices(v value) []netip.Addr {
	var out []netip.Addr
	for _, item := range v.items() {
		t, ok := item.get("type")
		if !ok || t.str() != "dns" {
			v.warn(item.node.Line, "a service that is not of type dns has no effect")
			continue
		}
		if a, ok := item.get("address"); ok {
			out = append(out, a.addrs()...)
		}
	}
	return out
}
