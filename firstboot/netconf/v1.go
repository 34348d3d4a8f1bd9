package netconf

import (
	"net/netip"
	"strings"
)

// readV1 reads network-config version 1: a list of things of all types.
func readV1(root value, cfg *Config) {
	var dns []nameserver
	var routes []value
	for _, e := range root.entries() {
		switch e.key {
		case "version":
		case "config":
			for _, item := range e.items() {
				readV1Item(item, cfg, &dns, &routes)
			}
		default:
			root.warn(e.line, "%s is not known here and has no effect", e.key)
		}
	}
	for _, d := range dns {
		d.apply(root.report, cfg)
	}
	for _, v := range routes {
		readV1GlobalRoute(v, cfg)
	}
}

// nameserver is an entry that stands beside the interfaces.
type nameserver struct {
	line   int
	link   string // "" for every interface
	addrs  []netip.Addr
	search []string
}

func (d nameserver) apply(r *report, cfg *Config) {
	if d.link != "" {
		l := cfg.Link(d.link)
		if l == nil {
			r.failAt(d.line, "nameserver: interface %q is not in the configuration", d.link)
			return
		}
		l.DNS, l.Search = append(l.DNS, d.addrs...), append(l.Search, d.search...)
		return
	}
	// Servers belong to a link in systemd-resolved, so servers for all go to
	// each link that has addresses of its own.
	used := false
	for i := range cfg.Links {
		if l := &cfg.Links[i]; l.Kind != Loopback && (l.DHCP4 || l.DHCP6 || len(l.Addresses) > 0) {
			l.DNS, l.Search = append(l.DNS, d.addrs...), append(l.Search, d.search...)
			used = true
		}
	}
	if !used {
		r.warn(d.line, "nameserver has no effect: no interface has an address")
	}
}

func readV1Item(v value, cfg *Config, dns *[]nameserver, routes *[]value) {
	t, ok := v.get("type")
	if !ok {
		v.fail(v.node, "an entry of config: needs its type: (physical, bond, bridge, vlan, loopback, nameserver or route)")
		return
	}
	l := Link{line: v.node.Line}
	switch t.str() {
	case "physical":
		l.Kind = Ethernet
	case "bond":
		l.Kind = Bond
	case "bridge":
		l.Kind = Bridge
	case "vlan":
		l.Kind = VLAN
	case "loopback":
		l.Kind = Loopback
	case "nameserver":
		*dns = append(*dns, readV1Nameserver(v))
		return
	case "route":
		*routes = append(*routes, v)
		return
	default:
		v.warn(t.node.Line, "type %q is not known here and has no effect", t.str())
		return
	}
	var mac string
	for _, k := range v.entries() {
		switch k.key {
		case "type":
		case "name":
			l.ID = k.interfaceName()
		case "mac_address":
			mac = k.mac()
		case "mtu":
			if !k.null() {
				l.MTU = k.integer(68, 65535)
			}
		case "wakeonlan":
			l.WakeOnLAN = k.boolean()
		case "accept-ra", "accept_ra":
			l.AcceptRA = k.booleanPtr()
		case "subnets":
			for _, item := range k.items() {
				readV1Subnet(item, &l)
			}
		default:
			if !readV1KindKey(k, &l) {
				v.warn(k.line, "%s: key %q is not known here and has no effect", t.str(), k.key)
			}
		}
	}
	switch {
	case l.Kind == Loopback && l.ID == "":
		l.ID = "lo"
	case l.ID == "":
		v.fail(v.node, "this %s lacks its name:", t.str())
		return
	}
	if l.Kind == VLAN {
		if l.Parent == "" {
			v.fail(v.node, "VLAN %s lacks vlan_link:, the interface that it stands on", l.ID)
		}
		if _, ok := v.get("vlan_id"); !ok {
			v.fail(v.node, "VLAN %s lacks vlan_id:, its number", l.ID)
		}
	}
	switch {
	case mac == "":
	case l.Kind == Ethernet:
		// Version 1 has no set-name: the entry's name is the name that the
		// interface with this MAC address shall have.
		l.Match.MAC, l.SetName = mac, l.ID
	default:
		l.MAC = mac
	}
	cfg.Links = append(cfg.Links, l)
}

func readV1KindKey(k entry, l *Link) bool {
	switch key := strings.ReplaceAll(k.key, "-", "_"); {
	case l.Kind == VLAN && key == "vlan_id":
		l.VLANID = k.integer(0, 4094)
	case l.Kind == VLAN && key == "vlan_link":
		l.Parent = k.str()
	case l.Kind == Bond && key == "bond_interfaces", l.Kind == Bridge && key == "bridge_interfaces":
		l.Members = k.words()
	case l.Kind == Bond && key == "params":
		for _, p := range k.entries() {
			if !readV1BondParam(p, &l.Bond) {
				k.warn(p.line, "bond: parameter %q is not known here and has no effect", p.key)
			}
		}
	case l.Kind == Bond && strings.HasPrefix(key, "bond_"):
		return readV1BondParam(k, &l.Bond)
	case l.Kind == Bridge && key == "params":
		for _, p := range k.entries() {
			if !readV1BridgeParam(p, &l.Bridge) {
				k.warn(p.line, "bridge: parameter %q is not known here and has no effect", p.key)
			}
		}
	default:
		return false
	}
	return true
}

// v1Bond maps the names of ifenslave(8), which version 1 uses, to netplan's.
var v1Bond = map[string]string{
	"mode": "mode", "miimon": "mii-monitor-interval", "updelay": "up-delay", "downdelay": "down-delay",
	"lacp-rate": "lacp-rate", "xmit-hash-policy": "transmit-hash-policy", "ad-select": "ad-select",
	"arp-interval": "arp-interval", "arp-ip-target": "arp-ip-targets", "arp-validate": "arp-validate",
	"arp-all-targets": "arp-all-targets", "fail-over-mac": "fail-over-mac-policy", "primary": "primary",
	"primary-reselect": "primary-reselect-policy", "min-links": "min-links", "num-grat-arp": "gratuitous-arp",
	"packets-per-slave": "packets-per-slave", "resend-igmp": "resend-igmp", "lp-interval": "learn-packet-interval",
	"all-slaves-active": "all-slaves-active",
}

func readV1BondParam(k entry, b *BondOptions) bool {
	name, known := v1Bond[strings.TrimPrefix(strings.ReplaceAll(k.key, "_", "-"), "bond-")]
	if !known {
		return false
	}
	k.key = name
	return bondKey(k, b)
}

func readV1BridgeParam(k entry, b *BridgeOptions) bool {
	switch strings.TrimPrefix(strings.ReplaceAll(k.key, "-", "_"), "bridge_") {
	case "stp":
		b.STP = k.booleanPtr()
	case "fd":
		b.ForwardDelay = k.durationPtr(secondsOfV1)
	case "hello":
		b.HelloTime = k.durationPtr(secondsOfV1)
	case "maxage":
		b.MaxAge = k.durationPtr(secondsOfV1)
	case "ageing":
		b.AgeTime = k.durationPtr(secondsOfV1)
	case "bridgeprio":
		n := k.integer(0, 65535)
		b.Priority = &n
	case "pathcost":
		b.PathCost = v1PerMember(k.value, 1, 1<<31-1)
	case "portprio":
		b.PortPriority = v1PerMember(k.value, 0, 63)
	default:
		return false
	}
	return true
}

const secondsOfV1 = 1e9

// v1PerMember reads "eth0 50", or a list of such.
func v1PerMember(v value, lo, hi int) map[string]int {
	out := map[string]int{}
	for _, item := range v.items() {
		name, number, ok := strings.Cut(item.str(), " ")
		if !ok {
			v.fail(item.node, "%s: want an interface and a number, not %q", v.name, item.str())
			continue
		}
		n := *item.node
		n.Value = strings.TrimSpace(number)
		out[name] = value{v.report, &n, v.name}.integer(lo, hi)
	}
	return out
}

func readV1Nameserver(v value) nameserver {
	d := nameserver{line: v.node.Line}
	for _, k := range v.entries() {
		switch k.key {
		case "type":
		case "address":
			d.addrs = k.addrs()
		case "search":
			d.search = k.words()
		case "interface":
			d.link = k.str()
		default:
			v.warn(k.line, "nameserver: key %q is not known here and has no effect", k.key)
		}
	}
	return d
}

func readV1Subnet(v value, l *Link) {
	kind := "static"
	if t, ok := v.get("type"); ok {
		kind = t.str()
	}
	yes := true
	switch kind {
	case "dhcp", "dhcp4":
		l.DHCP4 = true
	case "dhcp6":
		l.DHCP6 = true
	case "ipv6_dhcpv6-stateful":
		l.DHCP6, l.AcceptRA = true, &yes
	case "ipv6_dhcpv6-stateless", "ipv6_slaac":
		l.AcceptRA = &yes
	case "static", "static6", "manual":
	default:
		v.fail(v.node, "subnet type %q is not known (dhcp, dhcp4, dhcp6, static, static6, manual, ipv6_slaac, ipv6_dhcpv6-stateful, ipv6_dhcpv6-stateless are)", kind)
		return
	}
	if a, ok := v.get("address"); ok && !a.null() {
		if p := readV1Address(v, a); p.IsValid() {
			l.Addresses = append(l.Addresses, Address{Prefix: p})
		}
	} else if kind == "static" || kind == "static6" {
		v.fail(v.node, "a subnet of type %s needs its address:", kind)
	}
	metric := -1
	if m, ok := v.get("metric"); ok {
		metric = m.integer(0, 1<<31-1)
	}
	for _, k := range v.entries() {
		switch k.key {
		case "type", "address", "netmask", "metric":
		case "gateway":
			if k.str() == "" {
				continue
			}
			if gw := k.addr(); gw.IsValid() {
				l.Routes = append(l.Routes, Route{Via: gw, Metric: metric})
			}
		case "dns_nameservers", "dns-nameservers":
			l.DNS = append(l.DNS, k.addrs()...)
		case "dns_search", "dns-search":
			l.Search = append(l.Search, k.words()...)
		case "routes":
			for _, item := range k.items() {
				readV1Route(item, l)
			}
		case "control":
			switch c := k.str(); c {
			case "auto", "hotplug":
			case "manual":
				l.Manual = true
			default:
				v.fail(k.node, "control must be auto or manual, not %q", c)
			}
		case "broadcast", "ipv4", "ipv6": // follow from the address
		default:
			v.warn(k.line, "subnet: key %q is not known here and has no effect", k.key)
		}
	}
}

// readV1Address joins address and netmask.
func readV1Address(v, a value) netip.Prefix {
	if mask, ok := v.get("netmask"); ok && !mask.null() && !strings.Contains(a.str(), "/") {
		ip := a.addr()
		if !ip.IsValid() {
			return netip.Prefix{}
		}
		return mask.netmask(ip)
	}
	return a.prefix(false)
}

// readV1Route reads a route of a subnet or of its own: the destination under
// one of three names, with the netmask in it or beside it.
func readV1Route(v value, l *Link) {
	rt := Route{Metric: -1}
	var mask *value
	var isDefault bool
	for _, k := range v.entries() {
		switch k.key {
		case "type":
		case "destination", "network", "to":
			switch s := k.str(); {
			case s == "default":
				isDefault = true
			default:
				rt.To = k.prefix(true)
			}
		case "netmask", "prefix":
			m := k.value
			mask = &m
		case "gateway", "via":
			rt.Via = k.addr()
		case "metric":
			rt.Metric = k.integer(0, 1<<31-1)
		default:
			v.warn(k.line, "route: key %q is not known here and has no effect", k.key)
		}
	}
	if mask != nil && rt.To.IsValid() && rt.To.IsSingleIP() {
		rt.To = mask.netmask(rt.To.Addr())
	}
	finishRoute(v, l, rt, isDefault)
}

// readV1GlobalRoute gives a route that stands beside the interfaces to the
// interface whose network holds its gateway.
func readV1GlobalRoute(v value, cfg *Config) {
	var tmp Link
	readV1Route(v, &tmp)
	for _, rt := range tmp.Routes {
		var home *Link
		for i := range cfg.Links {
			for _, a := range cfg.Links[i].Addresses {
				if rt.Via.IsValid() && a.Prefix.Masked().Contains(rt.Via) {
					home = &cfg.Links[i]
				}
			}
		}
		if home == nil {
			v.fail(v.node, "no interface has a network that holds the gateway of this route, %s", rt.Via)
			continue
		}
		home.Routes = append(home.Routes, rt)
	}
}
